"""Time what surrounds the network: one scheduler step, and a whole sampling run: `python scripts/bench_step.py`.

Part 1 times `FewStepScheduler.step` beside the diffusers scheduler of the same solver, on the host, with a
latent of 1 × 4 × 64 × 64 in float32 and a network output that is there already. It counts the
thread's own processor time, which other load on the machine hardly lengthens, and the runs of all
schedulers alternate; ratios are medians of the ratios within a round. It also counts operations on
tensors of the latent's size, the largest number in a step. Part 2 divides the time of
`sample` on an embedded model by the part of it that the network takes.
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import diffusers
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from eval.report import surroundings
from samplers import sample
from samplers.diffusers import FewStepScheduler
from scoremodels.loaders import load

LATENT = (1, 4, 64, 64)
GOAL_RUN = 1.03
GOAL_OPERATIONS = 6


class Twin(NamedTuple):
    """A solver of ours and the diffusers scheduler that is the same.

    Attributes:
        solver: its name here.
        theirs: makes their scheduler.
        goal: largest ratio of the times; None for none.
    """

    solver: str
    theirs: Callable[[], Any]
    goal: float | None


TWINS = (
    Twin("ddim", diffusers.DDIMScheduler, None),
    Twin("euler", diffusers.EulerDiscreteScheduler, None),
    Twin("dpm-solver++-2m", diffusers.DPMSolverMultistepScheduler, 0.3),
    Twin("dpm-solver++-3m", partial(diffusers.DPMSolverMultistepScheduler, solver_order=3), 0.3),
    Twin("sde-dpm-solver++-2m", partial(diffusers.DPMSolverMultistepScheduler, algorithm_type="sde-dpmsolver++"), 0.3),
    Twin("unipc-2", diffusers.UniPCMultistepScheduler, 0.08),
    Twin("unipc-3", partial(diffusers.UniPCMultistepScheduler, solver_order=3), 0.08),
    Twin("deis-2", diffusers.DEISMultistepScheduler, 0.08),
    Twin("deis-3", partial(diffusers.DEISMultistepScheduler, solver_order=3), 0.08),
    Twin("sa-solver-2", diffusers.SASolverScheduler, 0.08),
    Twin("lms-4", diffusers.LMSDiscreteScheduler, None),
    Twin("plms", partial(diffusers.PNDMScheduler, skip_prk_steps=True), None),
    Twin("ddpm", diffusers.EulerAncestralDiscreteScheduler, None),
)


class Operations(TorchDispatchMode):
    """Counts operations that make or change a tensor of the latent's size, views and empty ones left out."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Count one operation."""
        result = func(*args, **(kwargs or {}))
        large = isinstance(result, Tensor) and result.numel() >= math.prod(LATENT)
        if large and not func.is_view and "empty" not in func.overloadpacket.__name__:
            self.count += 1
        return result


@torch.no_grad()
def most_operations(scheduler: Any, steps: int, sample_: Tensor, output: Tensor) -> int:
    """The largest number of operations of the latent's size in one step of a run."""
    scheduler.set_timesteps(steps)
    most = 0
    for t in scheduler.timesteps:
        scheduler.scale_model_input(sample_, t)
        with Operations() as operations:
            sample_ = scheduler.step(output, t, sample_).prev_sample
        most = max(most, operations.count)
    return most


def seconds_per_step(scheduler: Any, steps: int, sample_: Tensor, output: Tensor) -> float:
    """Take the processor time of one run of ``steps`` steps, the set-up left out; return its mean step in seconds."""
    scheduler.set_timesteps(steps)
    timesteps = list(scheduler.timesteps)
    scheduler.scale_model_input(sample_, timesteps[0])  # Euler warns without it
    started = time.thread_time()
    for t in timesteps:
        sample_ = scheduler.step(output, t, sample_).prev_sample
    return (time.thread_time() - started) / len(timesteps)


@torch.no_grad()
def time_steps(schedulers: Mapping[str, Any], rounds: int, steps: int) -> dict[str, list[float]]:
    """Time all schedulers in turn, ``rounds`` times, after three rounds to warm up."""
    sample_, output = tensors()
    times: dict[str, list[float]] = {name: [] for name in schedulers}
    gc.collect()
    gc.disable()
    try:
        for index in range(rounds + 3):
            for name, scheduler in schedulers.items():
                seconds = seconds_per_step(scheduler, steps, sample_, output)
                if index >= 3:
                    times[name].append(seconds)
    finally:
        gc.enable()
    return times


def tensors() -> tuple[Tensor, Tensor]:
    """A state and a network output."""
    sample_, output = torch.randn(2, *LATENT, generator=torch.Generator().manual_seed(0)).unbind()
    return sample_, output


class Stopwatch(torch.nn.Module):
    """A network that adds up the time it takes."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seconds = 0.0
        self.calls = 0

    def forward(self, *arguments: Any) -> Tensor:
        """Call the network."""
        started = time.perf_counter()
        output = self.network(*arguments)
        self.seconds += time.perf_counter() - started
        self.calls += 1
        return output


def time_sampling(name: str, solver: str, nfe: int, batch: int, rounds: int) -> list[tuple[float, float]]:
    """Seconds of whole sampling runs, and of the network within each, after one run to warm up."""
    model = load(name)
    model.network = watch = Stopwatch(model.network)
    times = []
    for index in range(rounds + 1):
        watch.seconds, watch.calls = 0.0, 0
        started = time.perf_counter()
        result = sample(model, num=batch, solver=solver, nfe=nfe, batch=batch, seed=index * batch)
        seconds = time.perf_counter() - started
        assert watch.calls == result.nfe == nfe
        if index:
            times.append((seconds, watch.seconds))
    return times


def verdict(value: float, goal: float) -> str:
    """Say whether a goal is met."""
    return f"goal ≤ {goal:g}: {'met' if value <= goal else 'missed'}"


def print_twins(rounds: int, steps: int) -> None:
    """Print, for each pair, both times, their ratio, and the operations of each."""
    print(f"{'':20} {'µs a step':>10} {'theirs':>9} {'ratio':>6}  {'operations':>10} {'theirs':>7}")
    for twin in TWINS:
        pair = {"ours": FewStepScheduler(solver=twin.solver), "theirs": twin.theirs()}
        times = time_steps(pair, rounds, steps)
        ratio = statistics.median(a / b for a, b in zip(times["ours"], times["theirs"], strict=True))
        ours, theirs = (most_operations(scheduler, steps, *tensors()) for scheduler in pair.values())
        said = "" if twin.goal is None else f"  {verdict(ratio, twin.goal)}"
        print(f"{twin.solver:20} {statistics.median(times['ours']) * 1e6:10.1f} "
              f"{statistics.median(times['theirs']) * 1e6:9.1f} {ratio:6.3f}  {ours:10} {theirs:7}{said}"
              f"{'' if ours <= GOAL_OPERATIONS else f'  more than {GOAL_OPERATIONS} operations'}", flush=True)


def main() -> None:
    """Run both parts and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50, help="runs of each scheduler")
    parser.add_argument("--steps", type=int, default=20, help="steps a run")
    parser.add_argument("--model", default="fashion-mnist-edm")
    parser.add_argument("--solver", default="dpm-solver++-2m")
    parser.add_argument("--nfe", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--sampling-rounds", type=int, default=10)
    arguments = parser.parse_args()
    threads = torch.get_num_threads()
    print("\n".join(f"{key}: {value}" for key, value in surroundings().items()))

    torch.set_num_threads(1)
    print(f"\n1. Processor time of one step, {' × '.join(map(str, LATENT))} float32, one thread, median of "
          f"{arguments.rounds} alternating runs of {arguments.steps} steps, each pair by itself")
    print_twins(arguments.rounds, arguments.steps)

    torch.set_num_threads(threads)
    times = time_sampling(arguments.model, arguments.solver, arguments.nfe, arguments.batch, arguments.sampling_rounds)
    ratio = statistics.median(whole / network for whole, network in times)
    print(f"\n2. {arguments.model}, {arguments.solver}, {arguments.nfe} NFE, batch {arguments.batch}, {threads} "
          f"thread(s), median of {arguments.sampling_rounds} runs")
    print(f"sampling {statistics.median(whole for whole, _ in times):.3f} s, of it the network "
          f"{statistics.median(network for _, network in times):.3f} s")
    print(f"sampling / (NFE × network) = {ratio:.3f} ({verdict(ratio, GOAL_RUN)})")


if __name__ == "__main__":
    main()
