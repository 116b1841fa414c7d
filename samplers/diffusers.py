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

from odecore.plan import Plan
from samplers.diffusers_batch import side_by_side
from samplers.diffusers_clock import index_of
from samplers.diffusers_config import SUPPORTED, class_of, translated
from samplers.diffusers_plan import Recipe, Wish
from samplers.diffusers_run import Run


class FewStepScheduler(SchedulerMixin, ConfigMixin):
    """Run any fixed-grid solver of this library in a diffusers pipeline.

    ``num_inference_steps`` counts network evaluations, so that as many are spent as are asked for:
    ``len(scheduler.timesteps) == num_inference_steps``, whatever the order of the solver. (diffusers'
    HeunDiscreteScheduler spends 2n - 1 evaluations on n steps, and PNDMScheduler n + 1 or more.)
    ``from_config`` takes the config of any diffusers scheduler and keeps its schedule, prediction
    type, timestep spacing and solver, also where they are defaults of its class.
    Timesteps are int64 where they are whole, else float32.
    A saved pipeline loads in a process that has imported this module before.

    Args:
        solver: a name out of :data:`samplers.registry.SOLVERS`, except the adaptive ones; None for that of the
            ``conventions``, as ``solver_options`` have it.
        solver_options: what chooses the solver of the conventions, in that class's own words: ``solver_order``,
            ``algorithm_type``, …; what is left out is as in that class.
        weights: of a named solver: None for its own, "exact" for exact quadrature, or what DPM-Solver's other
            implementations use: "midpoint" or "heun", with singlestep stages on the points of the grid.
        grid: a name out of :data:`samplers.registry.GRIDS`; None for the spacing of the model's config.
        plan: a plan to run as it is, calibrated or learned on this model, or its JSON, as which it is saved in the
            config. A pipeline must ask for as many evaluations as it has; ``timesteps``, ``sigmas`` and ``mu`` that a
            pipeline gives do not change it.
        final_sigmas_type: "zero" to end without noise, "sigma_min" to end at the least noise of training.
        conventions: the diffusers scheduler that the model's config was written for. It decides the family of
            schedule, the solver, the arithmetic of ``timestep_spacing``, and (EDM) what the network is given.
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
        clip_sample, clip_sample_range: whether, and to which largest value, to clip the predicted sample.

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
        solver: str | None = None,
        solver_options: dict[str, Any] | None = None,
        weights: str | None = None,
        grid: str | None = None,
        plan: Plan | str | None = None,
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
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
    ) -> None:
        if isinstance(plan, Plan):
            self.register_to_config(plan=plan.to_json())
        self._recipe = Recipe.of(self.config)
        self.schedule, self._clock = self._recipe.schedule, self._recipe.clock
        fixed = self._recipe.fixed
        self.init_noise_sigma = float(self.schedule.prior_scale(self.schedule.t_max)) * (fixed.entry if fixed else 1.0)
        self.num_inference_steps: int | None = None
        self.plan: Plan | None = None
        every = np.linspace(self.schedule.t_max, self.schedule.t_min, num_train_timesteps)
        self.timesteps, self.sigmas = self._clock.timesteps(every), self._clock.sigmas([*every])
        self._begin_index: int | None = None
        self._run: Run | None = None

    @classmethod
    def from_config(
        cls, config: dict[str, Any] | SchedulerMixin | None = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> FewStepScheduler | tuple[FewStepScheduler, dict[str, Any]]:
        """Make a scheduler from the config of any diffusers scheduler, or from its own.

        Args:
            config: a scheduler's ``config``, or what its ``scheduler_config.json`` holds, or the scheduler itself.
            return_unused_kwargs: whether to return the keys that were not used, too.
            kwargs: arguments of this class, or of the config's class, that override the config's.

        Raises:
            ValueError: the config is of a class whose schedule none of ours expresses.
        """
        if isinstance(config, SchedulerMixin):
            config = {**config.config, "_class_name": type(config).__name__}
        name = class_of(config) if isinstance(config, dict) else None
        if config is not None and name not in (None, cls.__name__):
            config = translated(name, config, kwargs, cls._get_init_keys(cls))
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
        original_inference_steps: int | None = None,
        strength: float = 1.0,
    ) -> None:
        """Compile the plan of the next run, and forget the last one.

        Args:
            num_inference_steps: network evaluations to spend.
            device: where ``timesteps`` are to lie.
            timesteps: times at which to evaluate the network, noisiest first, in place of the grid.
            sigmas: noise levels σ/α (of a flow: σ, before its shift) at which to evaluate it; a final 0 is the end.
            mu: resolution-dependent shift of a flow, for this run alone; a named ``grid`` is not shifted.
            original_inference_steps: steps of the process that a consistency model was distilled from.
            strength: of consistency models, which share of these steps to start from.

        Raises:
            ValueError: no count, contradicting ones, or times that the solver cannot use.

        Cost: host arithmetic only, some milliseconds; a tenth of one where the same was set before.
        """
        told = None if timesteps is None else np.asarray(timesteps, dtype=np.float64)
        levels = None if sigmas is None else np.asarray(sigmas, dtype=np.float64)
        shift = None if mu is None else float(mu)
        plan = self._recipe.plan(Wish(num_inference_steps, told, levels, shift, original_inference_steps, strength))
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
        if self._run is not None:
            return sample * self._clock.input_scale(self._run.time)
        begins = self._begins(timestep, sample)
        assert self.plan is not None
        times = side_by_side([float(self.plan.rows[begin].t) for begin in begins], sample)
        return sample * self._clock.input_scale(times)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
        *,
        eta: float | None = None,
        use_clipped_model_output: bool = False,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """Run one row of the plan: from the network's output at the sample to the next evaluation point.

        Args:
            model_output: raw output of the network at ``sample``.
            timestep: read in the first step of a run only, to find the row to start at. A vector of shape (B,) starts
                each sample at its own row; one that has come to its end then keeps its state while others go on.
            sample: the point of evaluation; a pipeline may have changed it since the last step.
            generator: draws the noise of stochastic solvers; a list has one for each sample of the batch.
            variance_noise: standard normal noise to use instead.
            return_dict: whether to return a ``SchedulerOutput`` instead of a tuple.
            eta: amount of fresh noise, read in the first step of a run by solvers that have it (DDIM, TCD).
            use_clipped_model_output: whether DDIM's direction to the noise is that of the clipped sample, too; read in
                the first step of a run.

        Returns:
            The next sample, of the shape and dtype of ``sample``; in a tuple, and with the conventions of a consistency
            model, followed by what this step predicts of the data.

        Raises:
            ValueError: no timesteps are set, or shapes do not fit.
        """
        run = self._run
        if run is None:
            begins = self._begins(timestep, sample)
            assert self.plan is not None
            run = self._run = self._recipe.run(self.plan, begins, sample, eta=eta,
                                               clipped_direction=use_clipped_model_output)
        variance = None
        if model_output.shape != sample.shape:
            model_output, variance = self._split(model_output, sample)

        def draw(dtype: torch.dtype) -> Tensor:
            if variance_noise is not None:
                return variance_noise
            return randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=dtype)

        prev_sample = run.advance(model_output, sample, draw, variance)
        if run.finished:
            self._run = None
        if return_dict:
            return SchedulerOutput(prev_sample=prev_sample)
        return (prev_sample,) if run.datum is None else (prev_sample, run.datum)

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

    def _begins(self, timestep: float | Tensor | None, sample: Tensor) -> list[int]:
        """The row at which a run starts, or that of each sample."""
        if self.plan is None:
            raise ValueError("no timesteps are set: call set_timesteps before the first step")
        rows = self.plan.rows
        if self._begin_index is not None:
            if not 0 <= self._begin_index < len(rows):
                raise ValueError(f"begin_index={self._begin_index}: the plan has rows 0 to {len(rows) - 1}")
            return [self._begin_index]
        if timestep is None:
            raise ValueError("timestep=None: give the first timestep of a run, or call set_begin_index")
        each = timestep.tolist() if isinstance(timestep, Tensor) and timestep.numel() > 1 else [timestep]
        if len(each) not in (1, len(sample)):
            raise ValueError(f"timestep has {len(each)} entries for a batch of {len(sample)}: give one, or as "
                             "many")
        starts = [True, *(row.point == (1.0,) for row in rows[:-1])]
        return [index_of(one, self.timesteps, starts) for one in each]

    def _split(self, model_output: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        """The prediction and the variance, where the network's output holds both."""
        learned = self.config.variance_type in ("learned", "learned_range")
        shape = (sample.shape[0], 2 * sample.shape[1], *sample.shape[2:])
        if not learned or model_output.shape != shape:
            raise ValueError(f"model_output has shape {tuple(model_output.shape)} and sample {tuple(sample.shape)}: "
                             "they must be the same; set variance_type='learned_range' if the output holds a variance")
        prediction, variance = model_output.chunk(2, dim=1)
        return prediction, variance
