"""How diffusers counts a schedule's times: what the network is told, and which noise levels belong to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from odecore.plan import Weight
from samplers.grids import Times
from scoremodels.schedule import EDM, DiscreteVP, NoiseSchedule


@dataclass(frozen=True, slots=True)
class Clock:
    """A schedule as a diffusers pipeline sees it.

    Args:
        schedule: noise schedule of the model.
        preconditioned: whether the network is the bare body of an EDM-preconditioned model; it is then told a quarter
            of log σ, and given x / sqrt(σ² + σ_data²).
        flow: whether noise levels are σ, as for rectified flows, and not σ/α.
    """

    schedule: NoiseSchedule
    preconditioned: bool
    flow: bool
    _tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False)

    def told(self, times: Times) -> Times:
        """What the network is told at the schedule's times."""
        return np.log(times) / 4.0 if self.preconditioned else times

    def times(self, told: Times) -> Times:
        """The schedule's times of what the network is told."""
        return np.exp(4.0 * told) if self.preconditioned else told

    def timesteps(self, times: Times, device: str | torch.device | None = None) -> Tensor:
        """What the network is told, as int64 where a discrete schedule's timesteps are whole, else as float32."""
        told = self.told(times)
        whole = isinstance(self.schedule, DiscreteVP) and bool((told == np.rint(told)).all())
        return torch.tensor(told, dtype=torch.int64 if whole else torch.float32, device=device)

    def sigmas(self, times: Sequence[float]) -> Tensor:
        """Noise levels as diffusers counts them, on the host."""
        level = self.schedule.sigma if self.flow else self.schedule.ratio
        return torch.tensor(level(np.asarray(times, dtype=np.float64)), dtype=torch.float32)

    def input_scale(self, time: Weight) -> Weight:
        """What the state is multiplied by to give the network its input."""
        if not self.preconditioned:
            return 1.0
        assert isinstance(self.schedule, EDM)
        return (time**2 + self.schedule.sigma_data**2) ** -0.5

    def alpha_sigma(self, timesteps: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """α and σ at timesteps, shaped to multiply the samples, in their dtype and on their device.

        Whole timesteps of a discrete schedule are looked up on the device; others are evaluated on the host.
        """
        timesteps = torch.as_tensor(timesteps)
        if isinstance(self.schedule, DiscreteVP) and not timesteps.is_floating_point():
            key = (samples.device, samples.dtype)
            if key not in self._tables:
                self._tables[key] = self._factors(np.arange(self.schedule.t_max + 1), *key)
            index = timesteps.to(samples.device)
            factors = [table[index] for table in self._tables[key]]
        else:
            times = self.times(timesteps.double().cpu().numpy())
            factors = list(self._factors(times, samples.device, samples.dtype))
        alpha, sigma = (f.reshape(-1, *[1] * (samples.ndim - 1)) for f in factors)
        return alpha, sigma

    def _factors(self, times: Times, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.schedule.alpha(times), self.schedule.sigma(times)
        return torch.tensor(alpha, dtype=dtype, device=device), torch.tensor(sigma, dtype=dtype, device=device)


def index_of(timestep: float | Tensor, timesteps: Tensor, starts: Sequence[bool]) -> int:
    """Find a timestep among all of them.

    An element of ``timesteps`` itself knows its place without being read from the device; another
    number is compared. Where a time comes twice (a solver evaluates it at the end of one step and at the
    start of the next, or iterates on it), the comparison gives the last place where a step starts.

    Args:
        timestep: what is sought.
        timesteps: all of them.
        starts: whether a step starts at each.

    Raises:
        ValueError: it is none of them.
    """
    if isinstance(timestep, Tensor) and timestep.ndim == 0 and (
            timestep.untyped_storage().data_ptr() == timesteps.untyped_storage().data_ptr()):
        return int(timestep.storage_offset())
    wanted = float(timestep)
    distances = np.abs(timesteps.cpu().numpy() - wanted)
    nearest = np.flatnonzero(distances == distances.min())
    index = max((int(i) for i in nearest if starts[int(i)]), default=int(nearest[-1]))
    # Pipelines may keep their timesteps in bfloat16, which has three digits.
    if distances[index] > 4e-3 * max(1.0, abs(wanted)):
        raise ValueError(f"timestep={wanted} is none of the {len(distances)} timesteps that are set: pass one of "
                         "scheduler.timesteps")
    return index
