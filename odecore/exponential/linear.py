"""Linear operators that know the functions of their multiples: diagonal, dense, and diagonal in Fourier space."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from odecore.exponential.phi_sums import PhiSum, evaluate, evaluate_dense, varphi
from odecore.stepper import send

Map = Callable[[Tensor], Tensor]
Kept = TypeVar("Kept")

_KEPT = 4
"""Results that an operator remembers: those of a step, of its halves, and of an implicit part."""


class Functions(NamedTuple):
    """Functions of an operator, in coordinates in which they are cheap: ``f_i(hL) y = back(parts[i](into(y)))``.

    Attributes:
        into: to the coordinates (for Fourier operators, the transform).
        back: from the coordinates.
        parts: the functions, linear maps of coordinates of shape (samples, …).
    """

    into: Map
    back: Map
    parts: tuple[Map, ...]


class Memo:
    """The last few results of a costly function of the step length.

    Steps of equal length, and the stages of one step, then share the work.
    """

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: dict[Hashable, object] = {}

    def get(self, key: Hashable, values: Tensor, h: Tensor, make: Callable[[], Kept]) -> Kept:
        """Look up what ``make`` returned for this key, h, and state of ``values``; with gradients, make it anew."""
        if values.requires_grad or h.requires_grad:
            return make()
        key = (key, tuple(h.tolist()), 0 if values.is_inference() else values._version)
        if key not in self._kept:
            with torch.inference_mode(False), torch.no_grad():
                made = make()
            if len(self._kept) >= _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = made
        return self._kept[key]  # type: ignore[return-value]


class _Operator(ABC):
    """What the operators share."""

    __slots__ = ()

    @abstractmethod
    def functions(self, sums: Sequence[PhiSum], h: Tensor, like: Tensor) -> Functions:
        """``f(hL)`` for each sum of φ-functions f.

        Args:
            sums: the functions.
            h: of shape (samples,), float64, on the host.
            like: a state, for its shape, dtype and device.

        Raises:
            ValueError: the operator does not fit the state.

        Cost: the φ-functions, once for equal h of all samples and not again for repeated h.
        """

    def phi(self, order: int, h: Tensor, y: Tensor) -> Tensor:
        """``φ_order(h L) y``, with h of shape (samples,), float64, on the host; φ_0 is the exponential."""
        into, back, (part,) = self.functions((varphi(order),), h, y)
        return back(part(into(y)))


class _Elementwise(_Operator):
    """An operator that multiplies coordinates by a symbol."""

    __slots__ = ()
    _memo: Memo

    @abstractmethod
    def _basis(self, y: Tensor) -> tuple[Tensor, Map, Map]:
        """The symbol, of one rank with coordinates of one sample; the way to the coordinates and back."""

    def apply(self, y: Tensor) -> Tensor:
        """``L y``."""
        symbol, into, back = self._basis(y)
        coordinates = into(y)
        return back(_meet(symbol, coordinates.dtype) * coordinates)

    def functions(self, sums: Sequence[PhiSum], h: Tensor, like: Tensor) -> Functions:
        """``f(hL)`` for each sum of φ-functions f, of states like the one given."""
        symbol, into, back = self._basis(like)
        lengths = _distinct(h)

        def make() -> tuple[Tensor, ...]:
            return evaluate(sums, _multiples(lengths, symbol))

        values = self._memo.get((tuple(sums), symbol.shape), symbol, lengths, make)
        dtype = like.dtype.to_complex() if symbol.is_complex() else like.dtype
        return Functions(into, back, tuple(partial(torch.mul, _meet(value, dtype)) for value in values))

    def resolvent(self, h: Tensor, y: Tensor) -> Tensor:
        """``(I - h L)^{-1} y``, with h of shape (samples,), float64, on the host."""
        symbol, into, back = self._basis(y)
        coordinates = into(y)
        return back(coordinates / _meet(1.0 - _multiples(_distinct(h), symbol), coordinates.dtype))


@dataclass(frozen=True, slots=True, eq=False)
class Diagonal(_Elementwise):
    """``L y = values · y``.

    Args:
        values: a number, or a tensor that broadcasts over the state without its sample axis. Complex
            ones take complex states.
    """

    values: Tensor | complex
    _memo: Memo = field(default_factory=Memo, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _tensor("values", self.values))

    def _basis(self, y: Tensor) -> tuple[Tensor, Map, Map]:
        assert isinstance(self.values, Tensor)
        _check_dtype("values", self.values, y)
        return _aligned("values", self.values, y), _same, _same


@dataclass(frozen=True, slots=True, eq=False)
class Fourier(_Elementwise):
    """``L y = F^{-1}(symbol · F y)`` of states in physical space, with the discrete Fourier transform F.

    Args:
        symbol: a value for each mode, in the order of ``torch.fft.fftfreq`` along each of ``dims`` (the
            whole spectrum even for real states); other axes broadcast over the state without its
            sample axis. For real states its values at opposite modes must be conjugate, so that L is
            real: set the imaginary part of an odd derivative to 0 at the highest mode of an even grid.
        dims: the axes of the state along which to transform, counted from the end: (-1,) or (-2, -1).

    Raises:
        ValueError: axes that the symbol lacks, or that are not counted from the end.
    """

    symbol: Tensor
    dims: tuple[int, ...] = (-1,)
    _memo: Memo = field(default_factory=Memo, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "symbol", _tensor("symbol", self.symbol))
        object.__setattr__(self, "dims", tuple(self.dims))
        if not self.dims or len(set(self.dims)) < len(self.dims) or not all(
                -self.symbol.ndim <= dim <= -1 for dim in self.dims):
            raise ValueError(f"dims={self.dims}: give distinct axes of the symbol of shape {tuple(self.symbol.shape)}, "
                             "counted from the end, such as (-1,)")

    def _basis(self, y: Tensor) -> tuple[Tensor, Map, Map]:
        symbol = _aligned("symbol", self.symbol, y)
        sizes = [symbol.shape[dim] for dim in self.dims]
        if [y.shape[dim] for dim in self.dims] != sizes:
            raise ValueError(f"symbol has shape {tuple(self.symbol.shape)} and the state {tuple(y.shape)}: they must "
                             f"be equal along dims={self.dims}")
        if y.is_complex():
            return symbol, partial(torch.fft.fftn, dim=self.dims), partial(torch.fft.ifftn, dim=self.dims)
        self._check_real()
        half = symbol.narrow(self.dims[-1], 0, sizes[-1] // 2 + 1)
        return (half, partial(torch.fft.rfftn, dim=self.dims),
                partial(torch.fft.irfftn, s=sizes, dim=self.dims))

    def _check_real(self) -> None:
        symbol = self.symbol.detach()

        def make() -> bool:
            mirrored = symbol.flip(self.dims).roll([1] * len(self.dims), self.dims).conj()
            return bool(torch.allclose(mirrored, symbol, rtol=1e-5, atol=1e-8 * float(symbol.abs().max())))

        if not self._memo.get("real", symbol, torch.empty(0), make):
            raise ValueError("symbol is not that of a real operator, but the state is real: make its values at "
                             "opposite modes conjugate (real at the highest mode of an even grid), or the state "
                             "complex")


@dataclass(frozen=True, slots=True, eq=False)
class Dense(_Operator):
    """``(L y)_{…i} = Σ_j matrix_ij y_{…j}``: a matrix that acts on the last axis of the state.

    Args:
        matrix: of shape (n, n), real, or complex for complex states.

    Raises:
        ValueError: it is not square.

    Cost: φ-functions take some (k + 1) log2‖hL‖ + 20 matrix products for each distinct h; the
        resolvent a factorisation.
    """

    matrix: Tensor
    _memo: Memo = field(default_factory=Memo, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", _tensor("matrix", self.matrix))
        if self.matrix.ndim != 2 or self.matrix.shape[0] != self.matrix.shape[1]:
            raise ValueError(f"matrix has shape {tuple(self.matrix.shape)}: give a square one")

    def apply(self, y: Tensor) -> Tensor:
        """``L y``."""
        self._check(y)
        return y @ _meet(self.matrix, y.dtype).mT

    def functions(self, sums: Sequence[PhiSum], h: Tensor, like: Tensor) -> Functions:
        """``f(hL)`` for each sum of φ-functions f, of states like the one given."""
        self._check(like)
        lengths = _distinct(h)

        def make() -> tuple[Tensor, ...]:
            return evaluate_dense(sums, _multiples(lengths, self.matrix))

        values = self._memo.get(tuple(sums), self.matrix, lengths, make)
        return Functions(_same, _same, tuple(partial(_product, _meet(value, like.dtype)) for value in values))

    def resolvent(self, h: Tensor, y: Tensor) -> Tensor:
        """``(I - h L)^{-1} y``, with h of shape (samples,), float64, on the host."""
        self._check(y)
        lengths = _distinct(h)

        def make() -> tuple[Tensor, Tensor]:
            multiples = _multiples(lengths, self.matrix)
            identity = torch.eye(len(self.matrix), dtype=multiples.dtype, device=multiples.device)
            # Without checks: a singular matrix gives values that are not finite, which the driver sees.
            factors, pivots, _ = torch.linalg.lu_factor_ex(identity - multiples)
            return factors, pivots

        factors, pivots = self._memo.get("resolvent", self.matrix, lengths, make)
        rows = y.reshape(len(lengths), -1, y.shape[-1])
        dtype = factors.dtype if not y.is_complex() else torch.complex128
        solved = torch.linalg.lu_solve(factors.to(dtype), pivots, rows.to(dtype).mT).mT
        return solved.to(y.dtype).reshape(y.shape)

    def _check(self, y: Tensor) -> None:
        _check_dtype("matrix", self.matrix, y)
        if y.ndim < 2 or y.shape[-1] != len(self.matrix):
            raise ValueError(f"matrix has shape {tuple(self.matrix.shape)} and the state {tuple(y.shape)}: it acts on "
                             "the last axis after that of the samples, which must be as long")


def _same(y: Tensor) -> Tensor:
    return y


def _product(matrices: Tensor, y: Tensor) -> Tensor:
    """One matrix for all samples, or one for each, times the last axis."""
    return (y.reshape(len(matrices), -1, y.shape[-1]) @ matrices.mT).reshape(y.shape)


def _distinct(h: Tensor) -> Tensor:
    """One h where all samples have the same, else all of them."""
    return h[:1] if len(h) and bool((h == h[0]).all()) else h


def _multiples(h: Tensor, values: Tensor) -> Tensor:
    """``h_i values`` in double precision, of shape (len(h), *values.shape)."""
    wide = values.to(torch.complex128 if values.is_complex() else torch.float64)
    return send(h, values.device).reshape(-1, *[1] * values.ndim) * wide


def _meet(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Bring coefficients to the precision of the state, real ones staying real."""
    return value.to(dtype if value.is_complex() else dtype.to_real())


def _tensor(name: str, value: Tensor | complex) -> Tensor:
    if not isinstance(value, Tensor):
        value = torch.tensor(value, dtype=torch.complex128 if isinstance(value, complex) else torch.float64)
    if not (value.is_floating_point() or value.is_complex()):
        raise ValueError(f"{name} has dtype {value.dtype}: give floating-point or complex values")
    return value


def _check_dtype(name: str, value: Tensor, y: Tensor) -> None:
    if value.is_complex() and not y.is_complex():
        raise ValueError(f"{name} is complex and the state has dtype {y.dtype}: give a complex state")


def _aligned(name: str, value: Tensor, y: Tensor) -> Tensor:
    """Give values the rank of one sample of the state."""
    missing = y.ndim - 1 - value.ndim
    fits = missing >= 0 and all(a in (1, b) for a, b in zip(value.shape[::-1], y.shape[::-1], strict=False))
    if not fits:
        raise ValueError(f"{name} has shape {tuple(value.shape)} and the state {tuple(y.shape)}: it must broadcast "
                         "over the state without the axis of the samples")
    return value.reshape([1] * missing + list(value.shape))
