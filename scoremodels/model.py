"""A pretrained model: a network, the noise schedule it was trained on, and what it predicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from odecore.registers import Weight
from scoremodels.networks.preconditioning import evaluate_in_own_dtype
from scoremodels.prediction import PREDICTIONS
from scoremodels.schedule import NoiseSchedule


class ScoreModel(nn.Module):
    """A network with its meaning: ``model(x_t, t, condition)`` is its raw prediction at ``x_t = α x0 + σ ε``.

    Args:
        network: called as ``network(x, t, condition)`` with times t of shape (B,) in float32 (float64
            if the state is) and labels of shape (B,) or None. A floating-point state is cast to the
            dtype of its parameters, unless the network has a true attribute ``any_dtype``.
        schedule: noise schedule; its times are what the network is told.
        prediction: what the network predicts, one of ``scoremodels.prediction.PREDICTIONS``.
        shape: shape of one sample.
        num_classes: number of class labels; 0 if unconditional.
        label_dropout: whether a class-conditional network was trained without labels too, and knows
            label ``num_classes`` as "no label".
        name: what the model is called.
        value_range: least and largest value of the data.

    Raises:
        ValueError: an argument is unknown or out of range.
    """

    def __init__(
        self,
        network: Callable[[Tensor, Tensor, Tensor | None], Tensor],
        schedule: NoiseSchedule,
        prediction: str,
        shape: Sequence[int],
        *,
        num_classes: int = 0,
        label_dropout: bool = True,
        name: str = "",
        value_range: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        super().__init__()
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction={prediction!r} is unknown: choose one of {', '.join(PREDICTIONS)}")
        if not shape or not all(isinstance(n, int) and n > 0 for n in shape):
            raise ValueError(f"shape={shape!r}: give the positive dimensions of one sample, without the batch")
        if not isinstance(num_classes, int) or num_classes < 0:
            raise ValueError(f"num_classes={num_classes!r}: give a whole number, 0 if unconditional")
        low, high = map(float, value_range)
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"value_range={value_range!r}: give the least and the largest value of the data")
        self.network = network
        self.schedule = schedule
        self.prediction = prediction
        self.shape = tuple(shape)
        self.num_classes = num_classes
        self.label_dropout = label_dropout
        self.name = name
        self.value_range = (low, high)

    @property
    def device(self) -> torch.device:
        """Where the network's parameters lie; the CPU if it has none."""
        for tensor in (*self.parameters(), *self.buffers()):
            return tensor.device
        return torch.device("cpu")

    def forward(
        self, x: Float[Tensor, "batch ..."], t: float | Tensor, condition: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch ..."]:
        """Evaluate the network.

        Args:
            x: states, in any floating-point dtype, which is that of the result.
            t: one time, or one time a state.
            condition: one label a state; None for no labels.

        Returns:
            The raw prediction, in the dtype of ``x``.

        Raises:
            ValueError: a wrong shape, dtype, time or label; before the network is evaluated. Times and
                labels on an accelerator are not looked at, as that would wait for it.

        Cost: one evaluation.
        """
        times = self._checked(x, t, condition)
        if getattr(self.network, "any_dtype", False):
            return self.network(x, times, condition)
        return evaluate_in_own_dtype(self.network, x, times, condition)

    def denoise(self, x: Tensor, t: float | Tensor, condition: Tensor | None = None) -> Tensor:
        """Predict the clean sample x0, from arguments as in :meth:`forward`."""
        return self._converted("sample", x, t, condition)

    def noise(self, x: Tensor, t: float | Tensor, condition: Tensor | None = None) -> Tensor:
        """Predict the noise ε, from arguments as in :meth:`forward`."""
        return self._converted("epsilon", x, t, condition)

    def extra_repr(self) -> str:
        """Name what the network alone does not show."""
        return f"{self.name!r}, {self.schedule}, prediction={self.prediction!r}, shape={self.shape}"

    def conversion(self, source: str, target: str, x: Tensor, t: float | Tensor) -> tuple[Weight, Weight]:
        """Give (a, b) of ``target = a x + b raw``, where raw is of kind ``source``, at one time or one a state.

        Args:
            source: what is known, one of ``scoremodels.prediction.PREDICTIONS``.
            target: what is wanted, one of them.
            x: states of shape (B, …), whose dtype and device the weights suit.
            t: one time, for numbers; or times of shape (B,), for tensors that broadcast over the states.

        Raises:
            ValueError: x and raw do not determine the target at such a time.
        """
        if not isinstance(t, Tensor):
            return self.schedule.conversion(source, target, float(t))
        pairs = [self.schedule.conversion(source, target, time) for time in t.flatten().tolist()]
        weights = torch.tensor(pairs, dtype=torch.float64).T.reshape(2, -1, *[1] * len(self.shape))
        a, b = weights.to(x.device, _accumulation(x.dtype))
        return a, b

    def _converted(self, target: str, x: Tensor, t: float | Tensor, condition: Tensor | None) -> Tensor:
        a, b = self.conversion(self.prediction, target, x, t)
        return _combined(a, b, x, self(x, t, condition))

    def _checked(self, x: Tensor, t: float | Tensor, condition: Tensor | None) -> Tensor:
        if tuple(x.shape[1:]) != self.shape or not x.is_floating_point():
            raise ValueError(f"x has shape {tuple(x.shape)} and dtype {x.dtype}: give floating-point states of shape "
                             f"(batch, {', '.join(map(str, self.shape))})")
        self._check_condition(x, condition)
        time_dtype = _accumulation(x.dtype)
        if not isinstance(t, Tensor):
            if not self.schedule.t_clean <= t <= self.schedule.t_last:
                raise ValueError(f"t={t}: times of this model lie between {self.schedule.t_clean} and "
                                 f"{self.schedule.t_last}")
            return torch.full((len(x),), float(t), dtype=time_dtype, device=x.device)
        if t.ndim > 1 or (t.ndim == 1 and len(t) != len(x)):
            raise ValueError(f"t has shape {tuple(t.shape)}: give one time, or {len(x)} of them")
        return t.to(x.device, time_dtype).expand(len(x))

    def _check_condition(self, x: Tensor, condition: Tensor | None) -> None:
        if condition is None:
            if self.num_classes and not self.label_dropout:
                raise ValueError(f"condition=None, but the model knows no 'no label': give {len(x)} labels from 0 to "
                                 f"{self.num_classes - 1}")
            return
        if not self.num_classes:
            raise ValueError("condition is given, but the model is unconditional: leave condition out")
        if tuple(condition.shape) != (len(x),) or condition.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"condition has shape {tuple(condition.shape)} and dtype {condition.dtype}: give "
                             f"{len(x)} integer labels")
        if condition.device.type == "cpu" and not torch.compiler.is_compiling():
            last = self.num_classes if self.label_dropout else self.num_classes - 1
            if len(condition) and not (0 <= int(condition.min()) and int(condition.max()) <= last):
                raise ValueError(f"condition={condition.tolist()[:10]}: labels lie between 0 and "
                                 f"{self.num_classes - 1}" + (f", and {last} means no label" * self.label_dropout))


def _accumulation(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _combined(a: Weight, b: Weight, x: Tensor, raw: Tensor) -> Tensor:
    wide = _accumulation(x.dtype)
    return (a * x.to(wide) + b * raw.to(wide)).to(x.dtype)
