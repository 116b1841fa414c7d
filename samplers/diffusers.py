"""Plans as a scheduler of diffusers: ``pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config)``.

The scheduler is the host's adapter and no more: it compiles a plan when the timesteps are set, and
``step`` is one row of it. SchedulerMixin and ConfigMixin must stay names of this module, for
diffusers looks them up here when it loads a saved pipeline.
"""

from __future__ import annotations

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
from samplers.diffusers_clock import Clock, index_of
from samplers.diffusers_config import SUPPORTED, class_of, translated
from samplers.diffusers_run import Run
from samplers.diffusers_spacing import EDM_CLASSES, is_flow, spacing, times_of_sigmas
from samplers.grids import Times
from samplers.guidance import threshold
from samplers.published import solver_with_weights
from samplers.registry import grid_named
from samplers.restart import restart
from scoremodels.diffusers_config import schedule_from_diffusers

_OWN_STAGES = ("dpm-solver-2", "dpm-solver-3", "dpm-solver++-2s", "edm-heun", "dpmpp-sde")
"""Solvers that, unless with published weights, place stages between the times of their grid."""


class FewStepScheduler(SchedulerMixin, ConfigMixin):
    """Run any fixed-grid solver of this library in a diffusers pipeline.

    ``num_inference_steps`` counts network evaluations, so that as many are spent as are asked for:
    ``len(scheduler.timesteps) == num_inference_steps``, whatever the order of the solver.
    ``from_config`` takes the config of any diffusers scheduler and keeps its schedule, prediction
    type and timestep spacing, also where they are defaults of its class; ``clip_sample`` and the
    choice of solver are not taken over. Timesteps are int64 where they are whole, else float32.
    A saved pipeline loads in a process that has imported this module before.

    Args:
        solver: a name out of :data:`samplers.registry.SOLVERS`, except the adaptive ones.
        weights: None for the solver's own, "exact" for exact quadrature, or what DPM-Solver's other implementations
            use: "midpoint" or "heun" (diffusers' ``solver_type``), with singlestep stages on the points of the grid.
        lower_order_final: whether published multistep solvers lower their order over the last two of fewer than 15
            steps, and singlestep ones spend what whole steps leave over. No effect on other weights.
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
        weights: str | None = None,
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
        # Thresholding acts on the predicted sample, which the plan then takes for the network's output.
        self._plan_prediction = "sample" if thresholding else self._prediction
        self._solver = solver_with_weights(solver, weights, lower_order_final=lower_order_final)
        if grid is not None:
            grid_named(grid)
        elif not use_dynamic_shifting:
            spacing(self.config)
        self._clock = Clock(self.schedule, conventions in EDM_CLASSES, is_flow(self.config))
        self.init_noise_sigma = float(self.schedule.prior_scale(self.schedule.t_max))
        self.num_inference_steps: int | None = None
        self.plan: Plan | None = None
        every = np.linspace(self.schedule.t_max, self.schedule.t_min, num_train_timesteps)
        self.timesteps, self.sigmas = self._clock.timesteps(every), self._clock.sigmas([*every])
        self._begin_index: int | None = None
        self._to_sample: list[tuple[float, float]] = []
        self._run: Run | None = None

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
            custom = self._clock.times(np.asarray(timesteps, dtype=np.float64))
        elif sigmas is not None:
            custom = times_of_sigmas(self.config, self.schedule, np.asarray(sigmas, dtype=np.float64), mu)
        if custom is None and num_inference_steps is None:
            raise ValueError("num_inference_steps=None: say how many network evaluations to spend")
        plan = self._compile(num_inference_steps, custom, mu)
        if num_inference_steps not in (None, plan.nfe):
            raise ValueError(f"num_inference_steps={num_inference_steps}, but {plan.nfe} times are given: leave it out")
        self._to_sample = [] if not self.config.thresholding else [
            self.schedule.conversion(self._prediction, "sample", float(row.t)) for row in plan.rows]
        self.plan = plan
        times = np.array([float(row.t) for row in plan.rows])
        self.num_inference_steps = len(times)
        self.timesteps = self._clock.timesteps(times, device)
        self.sigmas = self._clock.sigmas([*times, float(plan.rows[-1].t_next)])
        self._begin_index = None
        self._run = None

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """Give the network its input: the sample itself, or with EDM preconditioning ``x / sqrt(σ² + σ_data²)``."""
        if not self._clock.preconditioned:
            return sample
        index = self._index_of(timestep) if self._run is None else self._run.index
        assert self.plan is not None
        return sample * self._clock.input_scale(float(self.plan.rows[index].t))

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
        """Noise clean samples: ``α(t) x0 + σ(t) ε``, one time for each sample or one for all."""
        alpha, sigma = self._clock.alpha_sigma(timesteps, original_samples)
        return alpha * original_samples + sigma * noise

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """Noise clean samples, with the arguments in the order of flow-matching pipelines."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The v-prediction that a network should make: ``α(t) ε - σ(t) x0``."""
        alpha, sigma = self._clock.alpha_sigma(timesteps, sample)
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
        if config.weights in (None, "exact") and config.solver in _OWN_STAGES:
            raise ValueError(f"solver={config.solver!r} with weights={config.weights!r} places its own stages between "
                             "times, so it takes no custom timesteps or sigmas: choose weights='midpoint', or a "
                             "multistep solver")
        if custom.ndim != 1 or len(custom) == 0:
            raise ValueError(f"the times given have shape {custom.shape}: give at least one, in one dimension")
        last = self.schedule.t_clean if end == "clean" else self.schedule.t_min
        times = custom if custom[-1] <= last else np.append(custom, last)
        return compile_plan(self._solver, self.schedule, nfe=len(times) - 1, grid=times, prediction=prediction)

    def _index_of(self, timestep: float | Tensor | None) -> int:
        """The row at which a run starts."""
        if self.plan is None:
            raise ValueError("no timesteps are set: call set_timesteps before the first step")
        if self._begin_index is not None:
            if not 0 <= self._begin_index < len(self.plan.rows):
                raise ValueError(f"begin_index={self._begin_index}: the plan has rows 0 to {len(self.plan.rows) - 1}")
            return self._begin_index
        if timestep is None:
            raise ValueError("timestep=None: give the first timestep of a run, or call set_begin_index")
        return index_of(timestep, self.timesteps)

    def _begin(self, timestep: float | Tensor) -> Run:
        begin = self._index_of(timestep)
        assert self.plan is not None
        rows = self.plan.rows
        if begin > 0:
            rest = restart(self.plan, begin, self._solver, self.schedule, self._plan_prediction)
            rows = (*rows[:begin], *rest)
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
