"""Plans as a scheduler of diffusers: ``pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config)``.

The scheduler is the host's adapter and no more: it compiles a plan when the timesteps are set, and
``step`` is one row of it. SchedulerMixin and ConfigMixin must stay names of this module, for
diffusers looks them up here when it loads a saved pipeline.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from odecore.plan import Plan, combine
from samplers.compile import compile_plan
from samplers.diffusers_config import SUPPORTED, class_of, translated
from samplers.diffusers_run import Run
from samplers.diffusers_spacing import EDM_CLASSES, flow_times, is_flow, spacing
from samplers.dpm_solver import RULES
from samplers.grids import Times
from samplers.guidance import threshold
from samplers.published import solver_with_weights
from samplers.registry import grid_named
from samplers.restart import restart
from samplers.variables import VARIABLES
from scoremodels.diffusers_config import schedule_from_diffusers
from scoremodels.schedule import EDM, DiscreteVP

_OWN_STAGES = ("dpm-solver-2", "dpm-solver-3", "dpm-solver++-2s", "edm-heun")
"""Solvers that, with exact weights, place stages between the times of their grid."""


class FewStepScheduler(SchedulerMixin, ConfigMixin):
    """Run any fixed-grid solver of this library in a diffusers pipeline.

    ``num_inference_steps`` counts network evaluations, so that as many are spent as are asked for:
    ``len(scheduler.timesteps) == num_inference_steps``, whatever the order of the solver.
    ``from_config`` takes the config of any diffusers scheduler and keeps its schedule, prediction
    type and timestep spacing, also where they are defaults of its class; ``clip_sample`` and the
    choice of solver are not taken over. Timesteps are int64 where they are whole, else float32.

    Args:
        solver: a name out of :data:`samplers.registry.SOLVERS`, except the adaptive ones.
        weights: "exact" quadrature, or what DPM-Solver's other implementations use: "midpoint" or "heun"
            (diffusers' ``solver_type``), with singlestep stages on the points of the grid.
        lower_order_final: whether published multistep solvers lower their order over the last two of fewer than 15
            steps, and singlestep ones spend what whole steps leave over. No effect with exact weights.
        grid: a name out of :data:`samplers.registry.GRIDS`; None for the spacing of the model's config.
        final_sigmas_type: "zero" to end without noise, "sigma_min" to end at the least noise of training.
        conventions: the diffusers scheduler that the model's config was written for. It decides the family of
            schedule, the arithmetic of ``timestep_spacing``, and (EDM) what the network is given.
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr,
            snr_shift_scale: a discrete variance-preserving schedule, as in diffusers.
        sigma_min, sigma_max, sigma_data: an EDM schedule; the first two also bound the levels below.
        rho: exponent of Karras levels.
        use_flow_sigmas: whether a discrete class runs a rectified flow.
        shift: shift of a flow's noise levels towards noise.
        use_dynamic_shifting, time_shift_type, shift_terminal: shift by the ``mu`` given to ``set_timesteps``
            ("exponential": by e^mu, "linear": by mu), and stretch the levels to end at ``shift_terminal``.
        prediction_type: "epsilon", "sample", "v_prediction" or "flow_prediction".
        variance_type: "learned" or "learned_range" if the network's output holds a variance in its second half.
        timestep_spacing: "leading", "linspace" or "trailing".
        steps_offset: added to "leading" timesteps.
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas: noise levels between the ends of training.
        thresholding: whether to clip the predicted sample to its own quantile, and divide by it.
        dynamic_thresholding_ratio: which quantile.
        sample_max_value: largest clipping value; 1 is plain clipping to [-1, 1].

    Raises:
        ValueError: an argument is unknown or does not fit the others; before any evaluation.

    Cost: a step takes at most a dozen tensor operations of the sample's size and no host–device synchronisation;
        memory of the sample, the next point and the solver's history.
    """

    _compatibles = [*(e.name for e in KarrasDiffusionSchedulers), *SUPPORTED]
    order = 1

    @register_to_config
    def __init__(
        self,
        solver: str = "dpm-solver++-2m",
        weights: str = "exact",
        lower_order_final: bool = True,
        grid: str | None = None,
        final_sigmas_type: str = "zero",
        conventions: str = "DPMSolverMultistepScheduler",
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | np.ndarray | None = None,
        rescale_betas_zero_snr: bool = False,
        snr_shift_scale: float | None = None,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        sigma_data: float | None = None,
        rho: float = 7.0,
        use_flow_sigmas: bool = False,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        shift_terminal: float | None = None,
        prediction_type: str = "epsilon",
        variance_type: str | None = None,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
    ) -> None:
        if final_sigmas_type not in ("zero", "sigma_min"):
            raise ValueError(f"final_sigmas_type={final_sigmas_type!r}: choose 'zero' or 'sigma_min'")
        if not 0.0 < dynamic_thresholding_ratio <= 1.0 or not sample_max_value >= 1.0:
            raise ValueError(f"dynamic_thresholding_ratio={dynamic_thresholding_ratio}, sample_max_value="
                             f"{sample_max_value}: the first lies above 0 and is at most 1, the second is at least 1")
        self.schedule, self._prediction = schedule_from_diffusers({**self.config, "_class_name": conventions})
        self._solver = solver_with_weights(solver, weights, lower_order_final=lower_order_final)
        if grid is not None:
            grid_named(grid)
        elif not use_dynamic_shifting:
            spacing(self.config)
        self._preconditioned = conventions in EDM_CLASSES
        self.init_noise_sigma = float(self.schedule.prior_scale(self.schedule.t_max))
        self.num_inference_steps: int | None = None
        self.plan: Plan | None = None
        self.timesteps = self._as_timesteps(np.linspace(self.schedule.t_max, self.schedule.t_min, num_train_timesteps))
        self.sigmas = self._as_sigmas([])
        self._begin_index: int | None = None
        self._to_sample: list[tuple[float, float]] = []
        self._run: Run | None = None
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    @classmethod
    def from_config(
        cls, config: dict[str, Any] | None = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> FewStepScheduler | tuple[FewStepScheduler, dict[str, Any]]:
        """Make a scheduler from the config of any diffusers scheduler, or from its own.

        Args:
            config: a scheduler's ``config``, or what its ``scheduler_config.json`` holds.
            return_unused_kwargs: whether to return the keys that were not used, too.
            kwargs: arguments of this class, or of the config's class, that override the config's.

        Raises:
            ValueError: the config is of a class whose schedule none of ours expresses.
        """
        name = class_of(config) if isinstance(config, dict) else None
        if config is not None and name not in (None, cls.__name__):
            source = {key: value for key, value in config.items() if key != "_use_default_values"}
            own = cls._get_init_keys(cls)
            overrides = {key: kwargs.pop(key) for key in list(kwargs) if key in source and key not in own}
            merged = source | overrides
            kept = translated(name, merged | {key: kwargs[key] for key in kwargs if key in own})
            # What else the source says stays in the config for the way back, unless the name means something here.
            config = {key: value for key, value in merged.items() if key not in own} | kept
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    @property
    def step_index(self) -> int | None:
        """Row of the plan that the next step runs; None before the first step and after the last."""
        return None if self._run is None else self._run.index

    @property
    def begin_index(self) -> int | None:
        """Row at which a run starts; None to find it from the first timestep."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start the next run at a row of the plan, as image-to-image pipelines do."""
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Compile the plan of the next run, and forget the last one.

        Args:
            num_inference_steps: network evaluations to spend.
            device: where ``timesteps`` are to lie.
            timesteps: times at which to evaluate the network, noisiest first, in place of the grid.
            sigmas: noise levels σ/α (of a flow: σ, before its shift) at which to evaluate it; a final 0 is the end.
            mu: resolution-dependent shift of a flow, for this run alone; a named ``grid`` is not shifted.

        Raises:
            ValueError: no count, contradicting ones, or times that the solver cannot use.

        Cost: host arithmetic only.
        """
        if timesteps is not None and sigmas is not None:
            raise ValueError("timesteps and sigmas are both given: pass one of them")
        custom = None
        if timesteps is not None:
            custom = self._times_of(np.asarray(timesteps, dtype=np.float64))
        elif sigmas is not None:
            custom = self._times_of_sigmas(np.asarray(sigmas, dtype=np.float64), mu)
        if custom is None and num_inference_steps is None:
            raise ValueError("num_inference_steps=None: say how many network evaluations to spend")
        plan = self._compile(num_inference_steps, custom, mu)
        if num_inference_steps not in (None, plan.nfe):
            raise ValueError(f"num_inference_steps={num_inference_steps}, but {plan.nfe} times are given: leave it out")
        self._to_sample = [] if not self.config.thresholding else [
            self.schedule.conversion(self._prediction, "sample", float(row.t)) for row in plan.rows]
        self.plan = plan
        times = np.array([float(row.t) for row in self.plan.rows])
        self.num_inference_steps = len(times)
        self.timesteps = self._as_timesteps(times, device)
        self.sigmas = self._as_sigmas([*times, float(self.plan.rows[-1].t_next)])
        self._begin_index = None
        self._run = None

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """Give the network its input: the sample itself, or with EDM preconditioning ``x / sqrt(σ² + σ_data²)``."""
        if not isinstance(self.schedule, EDM) or not self._preconditioned:
            return sample
        index = self._index_of(timestep) if self._run is None else self._run.index
        assert self.plan is not None
        return sample / math.hypot(self.plan.rows[index].t, self.schedule.sigma_data)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """Run one row of the plan: from the network's output at the sample to the next evaluation point.

        Args:
            model_output: raw output of the network at ``sample``.
            timestep: read in the first step of a run only, to find the row to start at.
            sample: the point of evaluation; a pipeline may have changed it since the last step.
            generator: draws the noise of stochastic solvers; a list has one for each sample of the batch.
            variance_noise: standard normal noise to use instead.
            return_dict: whether to return a ``SchedulerOutput`` instead of a tuple.

        Returns:
            The next sample, of the shape and dtype of ``sample``.

        Raises:
            ValueError: no timesteps are set, or shapes do not fit.
        """
        run = self._run
        if run is None:
            run = self._run = self._begin(timestep)
        if model_output.shape != sample.shape:
            model_output = self._mean(model_output, sample)

        def draw(dtype: torch.dtype) -> Tensor:
            if variance_noise is not None:
                return variance_noise
            return randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=dtype)

        prev_sample = run.advance(model_output, sample, draw)
        if run.finished:
            self._run = None
        return SchedulerOutput(prev_sample=prev_sample) if return_dict else (prev_sample,)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noise clean samples: ``α(t) x0 + σ(t) ε``, one time for each sample or one for all.

        Whole timesteps of a discrete schedule are looked up on the samples' device; others are
        evaluated on the host.
        """
        alpha, sigma = self._alpha_sigma(timesteps, original_samples)
        return alpha * original_samples + sigma * noise

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """Noise clean samples, with the arguments in the order of flow-matching pipelines."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The v-prediction that a network should make: ``α(t) ε - σ(t) x0``."""
        alpha, sigma = self._alpha_sigma(timesteps, sample)
        return alpha * noise - sigma * sample

    def __len__(self) -> int:
        """Number of training timesteps."""
        return self.config.num_train_timesteps

    def _compile(self, nfe: int | None, custom: Times | None, mu: float | None) -> Plan:
        config, prediction = self.config, self._plan_prediction
        end = "clean" if config.final_sigmas_type == "zero" else "minimum"
        if custom is None:
            assert nfe is not None
            grid = config.grid if config.grid is not None else spacing(config, mu)
            return compile_plan(self._solver, self.schedule, nfe=nfe, grid=grid, prediction=prediction, end=end)
        if config.weights == "exact" and config.solver in _OWN_STAGES:
            raise ValueError(f"solver={config.solver!r} with exact weights places its own stages between times, so it "
                             "takes no custom timesteps or sigmas: choose weights='midpoint', or a multistep solver")
        last = self.schedule.t_clean if end == "clean" else self.schedule.t_min
        times = custom if custom[-1] <= last else np.append(custom, last)
        return compile_plan(self._solver, self.schedule, nfe=len(times) - 1, grid=times, prediction=prediction)

    @property
    def _plan_prediction(self) -> str:
        """What the plan takes for the network's output: with thresholding, that is the predicted sample."""
        return "sample" if self.config.thresholding else self._prediction

    def _times_of(self, timesteps: Times) -> Times:
        """The schedule's times of what the network is told."""
        return np.exp(4.0 * timesteps) if self._preconditioned else timesteps

    def _network_times(self, times: Times) -> Times:
        """What the network is told: the time, or with EDM preconditioning a quarter of log σ."""
        return np.log(times) / 4.0 if self._preconditioned else times

    def _times_of_sigmas(self, sigmas: Times, mu: float | None) -> Times:
        if is_flow(self.config):
            return flow_times(self.config, sigmas, mu)
        if mu is not None:
            raise ValueError(f"mu={mu}: only flow-matching schedules are shifted; leave mu out")
        return self.schedule.time_of_ratio(sigmas)

    def _as_timesteps(self, times: Times, device: str | torch.device | None = None) -> Tensor:
        told = self._network_times(times)
        self._host_timesteps = told
        whole = isinstance(self.schedule, DiscreteVP) and bool((told == np.rint(told)).all())
        return torch.tensor(told, dtype=torch.int64 if whole else torch.float32, device=device)

    def _as_sigmas(self, times: Sequence[float]) -> Tensor:
        """Noise levels as diffusers counts them: σ/α, but σ of a flow. They stay on the host."""
        level = self.schedule.sigma if is_flow(self.config) else self.schedule.ratio
        return torch.tensor(level(np.asarray(times, dtype=np.float64)), dtype=torch.float32)

    def _index_of(self, timestep: float | Tensor | None) -> int:
        """The row at which a run starts whose first timestep is given."""
        if self.plan is None:
            raise ValueError("no timesteps are set: call set_timesteps before the first step")
        if self._begin_index is not None:
            if not 0 <= self._begin_index < len(self.plan.rows):
                raise ValueError(f"begin_index={self._begin_index}: the plan has rows 0 to {len(self.plan.rows) - 1}")
            return self._begin_index
        if timestep is None:
            raise ValueError("timestep=None: give the first timestep of a run, or call set_begin_index")
        if isinstance(timestep, Tensor) and timestep.ndim == 0 and (
                timestep.untyped_storage().data_ptr() == self.timesteps.untyped_storage().data_ptr()):
            # An element of our own timesteps knows its place, without being read from the device.
            return int(timestep.storage_offset())
        wanted = float(timestep)
        distances = np.abs(self._host_timesteps - wanted)
        # Where a solver evaluates a time twice, at the end of one step and the start of the next, a run starts there.
        index = int(np.flatnonzero(distances == distances.min())[-1])
        # Pipelines may keep their timesteps in bfloat16, which has three digits.
        if distances[index] > 4e-3 * max(1.0, abs(wanted)):
            raise ValueError(f"timestep={wanted} is none of the {len(distances)} timesteps that are set: pass one of "
                             "scheduler.timesteps")
        return index

    def _begin(self, timestep: float | Tensor) -> Run:
        begin = self._index_of(timestep)
        assert self.plan is not None
        rows = self.plan.rows
        if begin > 0:
            variable = VARIABLES[self._solver.variable](self.schedule, self._plan_prediction)
            rule = RULES["exact" if self.config.weights == "exact" else f"multistep-{self.config.weights}"]
            rows = (*rows[:begin], *restart(rows, begin, variable, rule))
        if not self.config.thresholding:
            return Run(rows, begin, self.plan.depth)
        weights = self._to_sample
        quantile, maximum = self.config.dynamic_thresholding_ratio, self.config.sample_max_value

        def denoise(index: int, point: Tensor, raw: Tensor) -> Tensor:
            return threshold(combine(weights[index], (point, raw.to(point.dtype))), quantile, maximum)

        return Run(rows, begin, self.plan.depth, denoise)

    def _mean(self, model_output: Tensor, sample: Tensor) -> Tensor:
        """The predicted mean, where the network's output holds a variance too."""
        learned = self.config.variance_type in ("learned", "learned_range")
        shape = (sample.shape[0], 2 * sample.shape[1], *sample.shape[2:])
        if not learned or model_output.shape != shape:
            raise ValueError(f"model_output has shape {tuple(model_output.shape)} and sample {tuple(sample.shape)}: "
                             "they must be the same; set variance_type='learned_range' if the output holds a variance")
        return model_output[:, : sample.shape[1]]

    def _alpha_sigma(self, timesteps: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """α and σ at timesteps, shaped to multiply the samples, in their dtype and on their device."""
        timesteps = torch.as_tensor(timesteps)
        if isinstance(self.schedule, DiscreteVP) and not timesteps.is_floating_point():
            key = (samples.device, samples.dtype)
            if key not in self._tables:
                self._tables[key] = self._factors(np.arange(self.schedule.t_max + 1), *key)
            index = timesteps.to(samples.device)
            factors = [table[index] for table in self._tables[key]]
        else:
            times = self._times_of(timesteps.double().cpu().numpy())
            factors = list(self._factors(times, samples.device, samples.dtype))
        alpha, sigma = (f.reshape(-1, *[1] * (samples.ndim - 1)) for f in factors)
        return alpha, sigma

    def _factors(self, times: Times, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.schedule.alpha(times), self.schedule.sigma(times)
        return torch.tensor(alpha, dtype=dtype, device=device), torch.tensor(sigma, dtype=dtype, device=device)
