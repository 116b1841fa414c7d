from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from odecore.learn.callbacks import KeepBest, cosine_decay, every
from odecore.learn.fit import Moment, adam, fit, minibatches

Pair = tuple[Tensor, Tensor]


def line(seed: int = 0) -> tuple[nn.Module, Pair]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 3, generator=generator)
    module = nn.Linear(3, 1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    return module, (x, x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.25)


def squares(module: nn.Module, batch: Pair) -> Tensor:
    return (module(batch[0]) - batch[1]).square().mean()


def test_least_squares_are_found() -> None:
    module, data = line()
    result = fit(module, squares, minibatches(*data, size=32), steps=600, optimizer=adam(0.05))
    assert torch.allclose(module.weight, torch.tensor([[1.0, -2.0, 0.5]]), atol=1e-3)
    assert len(result.losses) == 600 and result.losses[-1] < 1e-5 < result.losses[0]


def test_an_optimiser_that_evaluates_the_loss_often_works() -> None:
    module, data = line()
    fit(module, squares, lambda step: data, steps=10, optimizer=lambda p: torch.optim.LBFGS(p, lr=1.0, max_iter=10))
    assert squares(module, data) < 1e-9


def test_the_terms_of_a_loss_are_kept_by_name() -> None:
    module, data = line()
    loss = lambda m, b: {"fit": squares(m, b), "size": m.weight.square().sum()}  # noqa: E731
    result = fit(module, loss, lambda step: data, steps=40)
    assert set(result.parts) == {"fit", "size"}
    assert torch.allclose(torch.tensor(result.parts["fit"]) + torch.tensor(result.parts["size"]),
                          torch.tensor(result.losses))


def test_a_run_cut_in_two_equals_an_undisturbed_one(tmp_path: Path) -> None:
    whole, data = line()
    batches = minibatches(*data, size=16, seed=3)
    undisturbed = fit(whole, squares, batches, steps=30)
    first, _ = line()
    fit(first, squares, batches, steps=13, folder=tmp_path, save_every=5)
    second, _ = line()
    resumed = fit(second, squares, batches, steps=30, folder=tmp_path)
    assert torch.equal(second.weight, whole.weight)
    assert resumed.losses == undisturbed.losses
    assert len(list(tmp_path.glob("checkpoint-*"))) == 1


def test_callbacks_are_restored_with_the_run(tmp_path: Path) -> None:
    module, data = line()
    best = KeepBest(lambda m: squares(m, data).item(), module, every=5)
    fit(module, squares, lambda step: data, steps=10, folder=tmp_path, callbacks=[best])
    again, _ = line()
    restored = KeepBest(lambda m: squares(m, data).item(), again, every=5)
    fit(again, squares, lambda step: data, steps=20, folder=tmp_path, callbacks=[restored])
    assert [step for step, _ in restored.history] == [0, 5, 10, 15, 20]


def test_a_folder_of_a_longer_run_is_refused(tmp_path: Path) -> None:
    module, data = line()
    fit(module, squares, lambda step: data, steps=10, folder=tmp_path)
    with pytest.raises(ValueError, match="holds 10 steps"):
        fit(module, squares, lambda step: data, steps=5, folder=tmp_path)


def test_a_fit_that_does_not_improve_returns_its_start() -> None:
    module, data = line()
    start = module.weight.clone()
    best = KeepBest(lambda m: squares(m, data).item(), module, every=10, patience=2)
    result = fit(module, lambda m, b: -squares(m, b).clamp(max=100.0), lambda step: data, steps=100, callbacks=[best])
    assert len(result.losses) == 20
    assert best.restore() is False
    assert torch.equal(module.weight, start)


def test_a_loss_that_is_not_finite_is_named() -> None:
    module, data = line()
    poisoned = lambda m, b: squares(m, b) * (math.nan if b else 1.0)  # noqa: E731
    with pytest.raises(FloatingPointError, match="step 1 is nan"):
        fit(module, poisoned, lambda step: data, steps=3)


def test_batches_depend_on_seed_and_step_alone() -> None:
    rows = torch.arange(10)
    first, second = minibatches(rows, size=3, seed=1), minibatches(rows, size=3, seed=1)
    seen = [first(step)[0].tolist() for step in range(6)]
    assert second(4)[0].tolist() == seen[4]
    assert len({row for batch in seen[:3] for row in batch}) == 9
    assert seen != [minibatches(rows, size=3, seed=2)(step)[0].tolist() for step in range(6)]


def test_the_learning_rate_rises_and_falls() -> None:
    module, data = line()
    rates = []
    fit(module, squares, lambda step: data, steps=20, optimizer=adam(1.0), callbacks=[
        cosine_decay(20, warmup=5, floor=0.1), lambda moment: rates.append(moment.optimizer.param_groups[0]["lr"])])
    assert rates[4] == pytest.approx(1.0) and rates[-1] == pytest.approx(0.1) and rates[0] == pytest.approx(0.2)


def test_every_calls_at_multiples_only() -> None:
    module, data = line()
    seen: list[int] = []

    def look(moment: Moment) -> None:
        seen.append(moment.step)

    fit(module, squares, lambda step: data, steps=10, callbacks=[every(4, look)])
    assert seen == [4, 8]


@pytest.mark.parametrize(("arguments", "message"), [
    (dict(steps=0), "steps=0"), (dict(steps=1, save_every=0), "save_every=0")])
def test_wrong_numbers_are_refused(arguments: dict[str, int], message: str) -> None:
    module, data = line()
    with pytest.raises(ValueError, match=message):
        fit(module, squares, lambda step: data, **arguments)


def test_a_module_without_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        fit(nn.Identity(), squares, lambda step: None, steps=1)


@pytest.mark.parametrize(("data", "size", "message"), [
    ((torch.zeros(3), torch.zeros(4)), 1, "rows"), ((torch.zeros(3),), 4, "size=4")])
def test_wrong_batches_are_refused(data: tuple[Tensor, ...], size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        minibatches(*data, size=size)


TWO = """
import sys, torch
from torch import nn
from accelerate import Accelerator
from odecore.learn.fit import fit, minibatches
accelerator = Accelerator(cpu=True)
x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
module = nn.Linear(3, 1)
with torch.no_grad():
    module.weight.zero_(); module.bias.zero_()
fit(module, lambda m, b: (m(b[0]) - b[0].sum(1, keepdim=True)).square().mean(), minibatches(x, size=16), steps=20,
    accelerator=accelerator)
if accelerator.is_main_process:
    torch.save(module.weight.detach(), sys.argv[1])
"""


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO)
    weights = []
    for count in (1, 2):
        target = tmp_path / f"{count}.pt"
        subprocess.run([sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(count),
                        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
                        str(script), str(target)], check=True, capture_output=True, timeout=300,
                       env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"})
        weights.append(torch.load(target, weights_only=True))
    assert torch.allclose(weights[0], weights[1], atol=1e-6)
