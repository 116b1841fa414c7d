"""Which rule of Taylor arithmetic each of torch's functions follows, by its name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from odecore.explicit.jets import Jet

SAME = {"__mul__": "mul", "__rmul__": "mul", "multiply": "mul", "__matmul__": "matmul", "__rmatmul__": "rmatmul",
        "__truediv__": "div", "__div__": "div", "true_divide": "div", "divide": "div", "__rtruediv__": "rdiv",
        "__rdiv__": "rdiv", "__add__": "add", "__radd__": "add", "__sub__": "sub", "subtract": "sub",
        "__rsub__": "rsub", "__pow__": "pow", "__rpow__": "rpow", "__neg__": "neg", "negative": "neg"}
"""Other names of the same functions."""

LINEAR = frozenset((
    "neg", "sum", "mean", "clone", "contiguous", "to", "float", "double", "half", "type", "type_as", "cpu", "cuda",
    "reshape", "reshape_as", "view", "view_as", "flatten", "unflatten", "ravel", "transpose", "swapaxes", "permute",
    "movedim", "t", "T", "mT", "adjoint", "H", "mH", "real", "imag", "conj", "squeeze", "unsqueeze", "expand",
    "expand_as", "broadcast_to", "repeat", "repeat_interleave", "tile", "chunk", "split", "tensor_split", "unbind",
    "__getitem__", "select", "narrow", "index_select", "gather", "take", "diagonal", "diag", "diag_embed", "trace",
    "flip", "roll", "cumsum", "diff", "tril", "triu", "pad", "_pad", "masked_select", "pixel_shuffle",
    "pixel_unshuffle", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool2d", "interpolate", "unfold"))
"""Linear in their first argument: each coefficient by itself."""

JOINED = frozenset(("cat", "concat", "concatenate", "stack", "hstack", "vstack"))
"""Linear in a list."""

AFFINE = frozenset(("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d"))
"""``(x, weight, bias)``: linear in x but for the bias."""

PRODUCT = frozenset(("mul", "matmul", "mm", "bmm", "mv", "dot", "outer", "einsum"))
"""Linear in each of two arguments: a convolution of coefficients."""

CONSTANT = frozenset((
    "detach", "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "new_zeros", "new_ones",
    "new_full", "new_tensor", "new_empty", "sign", "floor", "ceil", "round", "trunc", "heaviside"))
"""What has no derivative."""

UNREACHABLE = frozenset((
    "item", "tolist", "numpy", "__array__", "__float__", "__int__", "__complex__", "__setitem__", "__iadd__",
    "__isub__", "__imul__", "__itruediv__", "__idiv__", "__ipow__", "data", "grad", "backward"))
"""What a series cannot follow."""


def integrated(
    func: Callable[..., Tensor], u: Jet, slope: Callable[[Jet, Jet], Tensor], **options: Any
) -> Jet:
    """``v = g(u)`` by its derivative: ``v' = g'(u) u'`` gives ``v_k = Σ_{j=1..k} (j/k) u_j w_{k-j}`` with w = g'(u).

    Args:
        func: g.
        u: its argument.
        slope: ``(u, v) -> g'(u)``, of torch's functions.
        options: of g.
    """
    v = u.derived(func(u.coefficients[0], **options), lambda k: _convolved(u, w, k))
    w = u.tape.slope(lambda: slope(u, v))
    return v


def _convolved(u: Jet, w: Any, k: int) -> Tensor:
    total = u.coefficients[k] * w.coefficients[0]
    for j in range(1, k):
        total = torch.addcmul(total, u.coefficients[j], w.coefficients[k - j], value=j / k)
    return total


def _elementwise(slope: Callable[[Jet, Jet], Tensor]) -> Callable[..., Jet]:
    return lambda func, u: integrated(func, u, slope)


def _sine(func: Callable[..., Tensor], u: Jet) -> Jet:
    return integrated(func, u, lambda u, v: _turned(torch.cos, u, v, -1.0))


def _cosine(func: Callable[..., Tensor], u: Jet) -> Jet:
    return integrated(func, u, lambda u, v: -_turned(torch.sin, u, v, 1.0))


def _turned(func: Callable[..., Tensor], u: Jet, other: Jet, sign: float) -> Jet:
    """The cosine or sine beside a sine or cosine that is there already."""
    return u.derived(func(u.coefficients[0]), lambda k: sign * _convolved(u, other, k))


def _relu(func: Callable[..., Tensor], u: Jet, inplace: bool = False) -> Jet:
    positive = u.coefficients[0] > 0
    return u.derived(torch.relu(u.coefficients[0]), lambda k: u.coefficients[k] * positive)


def _softplus(func: Callable[..., Tensor], u: Jet, beta: float = 1.0, threshold: float = 20.0) -> Jet:
    return integrated(func, u, lambda u, v: torch.sigmoid(beta * u), beta=beta, threshold=threshold)


INTEGRATED: dict[str, Callable[..., Any]] = {
    "exp": _elementwise(lambda u, v: v), "expm1": _elementwise(lambda u, v: v + 1),
    "log": _elementwise(lambda u, v: 1 / u), "log1p": _elementwise(lambda u, v: 1 / (1 + u)),
    "tanh": _elementwise(lambda u, v: 1 - v * v), "sigmoid": _elementwise(lambda u, v: v - v * v),
    "sqrt": _elementwise(lambda u, v: 0.5 / v), "rsqrt": _elementwise(lambda u, v: -0.5 * v * v * v),
    "reciprocal": _elementwise(lambda u, v: -v * v), "atan": _elementwise(lambda u, v: 1 / (1 + u * u)),
    "erf": _elementwise(lambda u, v: 2 / math.sqrt(math.pi) * torch.exp(-u * u)),
    "sin": _sine, "cos": _cosine, "relu": _relu, "softplus": _softplus,
}
"""Functions of each element that a differential equation defines."""


def _add(a: Any, b: Any, *, alpha: float = 1.0) -> Any:
    """A sum; a constant changes the constant coefficient alone, and the shape."""
    terms = [(a, 1.0), (b, alpha)]
    jets = [(term, factor) for term, factor in terms if hasattr(term, "coefficients")]
    first, second = (term.coefficients[0] if hasattr(term, "coefficients") else term for term in (a, b))
    value = first + second if alpha == 1.0 else first - second if alpha == -1.0 else first + alpha * second

    def extend(k: int) -> Tensor:
        parts = [term.coefficients[k] if factor == 1.0 else factor * term.coefficients[k] for term, factor in jets]
        total = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        return total.to(value.dtype).expand(value.shape)

    return jets[0][0].derived(value, extend)


def _where(condition: Tensor, a: Any, b: Any) -> Any:
    """A choice by element; a constant has zeros for its further coefficients."""
    jets = [term for term in (a, b) if hasattr(term, "coefficients")]
    first, second = (term.coefficients[0] if hasattr(term, "coefficients") else term for term in (a, b))

    def extend(k: int) -> Tensor:
        chosen, other = (term.coefficients[k] if hasattr(term, "coefficients") else 0.0 for term in (a, b))
        return torch.where(condition, chosen, other)

    return jets[0].derived(torch.where(condition, first, second), extend)


def _power(u: Any, exponent: Any) -> Any:
    if isinstance(exponent, int) and 0 <= exponent <= 8:
        total: Any = torch.ones_like(u) if exponent == 0 else u
        for _ in range(exponent - 1):
            total = total * u
        return total
    if exponent in (0.5, -0.5, -1, -1.0):
        return {0.5: torch.sqrt, -0.5: torch.rsqrt, -1: torch.reciprocal}[exponent](u)
    return torch.exp(exponent * torch.log(u))


def _divide(a: Any, b: Any, **options: Any) -> Any:
    if options.get("rounding_mode") is not None:
        return torch.div(a.detach(), b.detach() if isinstance(b, Tensor) else b, **options)
    return a * (1 / b if not isinstance(b, Tensor) else torch.reciprocal(b))


def _softmax(u: Any, dim: int, dtype: torch.dtype | None = None, **_: Any) -> Any:
    u = u if dtype is None else u.to(dtype)
    grown = torch.exp(u - u.detach().amax(dim, keepdim=True))
    return grown / grown.sum(dim, keepdim=True)


def _normalised(rows: Any, dims: Any, eps: float) -> Any:
    centred = rows - rows.mean(dims, keepdim=True)
    return centred * torch.rsqrt(torch.square(centred).mean(dims, keepdim=True) + eps)


def _scaled(u: Any, weight: Tensor | None, bias: Tensor | None) -> Any:
    u = u if weight is None else u * weight
    return u if bias is None else u + bias


def _layer_norm(u: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any) -> Any:
    return _scaled(_normalised(u, tuple(range(-len(shape), 0)), eps), weight, bias)


def _group_norm(u: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any) -> Any:
    channels = (1, -1, *[1] * (u.ndim - 2))
    rows = _normalised(u.reshape(u.shape[0], groups, -1), (-1,), eps).reshape(u.shape)
    return _scaled(rows, *(None if w is None else w.reshape(channels) for w in (weight, bias)))


def _attention(
    q: Any, k: Any, v: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, **_: Any,
) -> Any:
    scores = q @ k.transpose(-1, -2) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill(~attn_mask, -math.inf)
    return _softmax(scores if attn_mask is None else scores + attn_mask, -1) @ v


def _dropout(u: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    return u * (torch.rand(u.shape, dtype=u.dtype, device=u.device) >= p) / (1 - p) if training and p else u


def _gelu(u: Any, approximate: str = "none") -> Any:
    if approximate == "tanh":
        return 0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u * u * u)))
    return 0.5 * u * (1 + torch.erf(u / math.sqrt(2)))


COMPOSITE: dict[str, Callable[..., Any]] = {
    "add": _add, "sub": lambda a, b, *, alpha=1.0: _add(a, b, alpha=-alpha),
    "rsub": lambda a, b, *, alpha=1.0: _add(b, a, alpha=-alpha),
    "rmatmul": lambda a, b: torch.matmul(b, a), "div": _divide, "rdiv": lambda a, b: b * torch.reciprocal(a),
    "pow": _power, "rpow": lambda u, base: torch.exp(math.log(base) * u), "square": lambda u: u * u,
    "addcmul": lambda a, b, c, *, value=1.0: a + (b * c if value == 1.0 else value * b * c),
    "lerp": lambda a, b, weight: a + weight * (b - a),
    "where": _where,
    "silu": lambda u, inplace=False: u * torch.sigmoid(u), "gelu": _gelu, "logit": lambda u: torch.log(u / (1 - u)),
    "softmax": _softmax, "dropout": _dropout, "layer_norm": _layer_norm, "group_norm": _group_norm,
    "scaled_dot_product_attention": _attention,
    "addmm": lambda bias, a, b: bias + a @ b, "baddbmm": lambda bias, a, b: bias + a @ b,
}
"""Functions that are made of others."""
