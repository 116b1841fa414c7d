"""Time what surrounds the network: one scheduler step, and a whole sampling run: `python scripts/bench_step.py`.

Part 1 times `FewStepScheduler.step` and the steps of three diffusers schedulers on the host, with a
latent of 1 × 4 × 64 × 64 in float32 and a network output that is there already. It counts the
thread's own processor time, which other load on the machine hardly lengthens, and the runs of all
schedulers alternate; ratios are medians of the ratios within a round. Part 2 divides the time of
`sample` on an embedded model by the part of it that the network takes.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

from eval.report import surroundings
from samplers import sample
from samplers.diffusers import FewStepScheduler
from scoremodels.loaders import load

LATENT = (1, 4, 64, 64)
BASELINE = "DPMSolverMultistepScheduler"
GOAL_STEP, GOAL_RUN = 0.5, 1.03

SCHEDULERS: Mapping[str, Callable[[], Any]] = {
    "FewStepScheduler (dpm-solver++-2m)": lambda: FewStepScheduler(solver="dpm-solver++-2m"),
    BASELINE: DPMSolverMultistepScheduler,
    "UniPCMultistepScheduler": UniPCMultistepScheduler,
    "EulerDiscreteScheduler": EulerDiscreteScheduler,
}
"""Each with its defaults: second order, but for Euler's first."""


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
def time_steps(rounds: int, steps: int) -> dict[str, list[float]]:
    """Time all schedulers in turn, ``rounds`` times, after three rounds to warm up."""
    generator = torch.Generator().manual_seed(0)
    sample_, output = torch.randn(2, *LATENT, generator=generator).unbind()
    schedulers = {name: make() for name, make in SCHEDULERS.items()}
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


def print_steps(times: Mapping[str, Sequence[float]]) -> None:
    """Print median times and ratios to the baseline, and whether the goal is met."""
    print(f"{'':36} {'µs a step':>10} {'of ' + BASELINE:>32}")
    ours = next(iter(times))
    ratios = {}
    for name, seconds in times.items():
        ratios[name] = statistics.median(a / b for a, b in zip(seconds, times[BASELINE], strict=True))
        print(f"{name:36} {statistics.median(seconds) * 1e6:10.1f} {ratios[name]:32.2f}")
    print(f"{ours} / {BASELINE} = {ratios[ours]:.2f} ({verdict(ratios[ours], GOAL_STEP)})")


def main() -> None:
    """Run both parts and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="runs of each scheduler")
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
          f"{arguments.rounds} alternating runs of {arguments.steps} steps")
    print_steps(time_steps(arguments.rounds, arguments.steps))

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
