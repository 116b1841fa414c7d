"""The augmented Lagrangian against problems whose solution and multipliers are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from odecore.learn.constraints import AugmentedLagrangian, Constraint, Kind, equality, inequality, raised
from odecore.learn.fit import adam, fit


class Point(nn.Module):
    """Two numbers to choose."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(2, dtype=torch.float64))


GOAL = torch.tensor([2.0, 1.0], dtype=torch.float64)
HERE = torch.zeros(1, 1)


def distance(module: Any, batch: object) -> Tensor:
    return (module.x - GOAL).square().sum()


def solved(
    kind: Kind, function: Callable[[Any, Tensor], Tensor], folder: Path | None = None, steps: int = 800,
) -> tuple[Point, AugmentedLagrangian]:
    point = Point()
    lagrangian = AugmentedLagrangian({"c": Constraint(kind, function, HERE)}, weight=0.1, every=20, tolerance=1e-2)
    fit(point, lagrangian.added_to(distance), lambda step: None, steps=steps, optimizer=adam(0.02),
        callbacks=[lagrangian], folder=folder)
    return point, lagrangian


def test_an_equality_finds_the_constrained_minimum_and_its_multiplier() -> None:
    # min |x - (2, 1)|² with x1 + x2 = 1: x = (1, 0), λ = 2.
    point, lagrangian = solved(equality, lambda module, points: module.x.sum().reshape(1, 1) - 1)
    torch.testing.assert_close(point.x.detach(), torch.tensor([1.0, 0.0], dtype=torch.float64), rtol=0, atol=1e-3)
    torch.testing.assert_close(lagrangian.multipliers["c"].item(), 2.0, rtol=0, atol=1e-2)
    assert lagrangian.violations(point)["c"] < 1e-3


def test_an_active_inequality_is_kept_and_an_idle_one_changes_nothing() -> None:
    # x1 ≤ 1 pushes with ν = 2; x1 ≤ 3 does not push at all.
    point, lagrangian = solved(inequality, lambda module, points: module.x[:1].reshape(1, 1) - 1)
    torch.testing.assert_close(point.x.detach(), torch.tensor([1.0, 1.0], dtype=torch.float64), rtol=0, atol=1e-3)
    torch.testing.assert_close(lagrangian.multipliers["c"].item(), 2.0, rtol=0, atol=1e-2)
    point, lagrangian = solved(inequality, lambda module, points: module.x[:1].reshape(1, 1) - 3)
    torch.testing.assert_close(point.x.detach(), GOAL, rtol=0, atol=1e-3)
    assert lagrangian.multipliers["c"].item() == 0 and lagrangian.weights["c"] == 0.1


@pytest.mark.parametrize("kind", [equality, inequality])
def test_the_slope_of_a_penalty_is_the_next_multiplier(kind: Kind) -> None:
    value = torch.linspace(-2, 2, 41, dtype=torch.float64, requires_grad=True)
    multiplier = torch.full_like(value, 0.7).detach()
    (slope,) = torch.autograd.grad(kind(value, multiplier, 0.3).penalty.sum(), value)
    torch.testing.assert_close(slope, raised(kind, value.detach(), multiplier, 0.3))


def test_terms_are_those_of_the_source_where_an_inequality_pushes() -> None:
    psi, nu, rho = torch.tensor([0.5, 2.0]), torch.tensor([0.0, 1.5]), 0.25
    torch.testing.assert_close(inequality(psi, nu, rho).penalty, rho * psi.square() + nu * psi)


def test_a_run_that_is_resumed_has_the_multipliers_of_one_that_was_not(tmp_path: Path) -> None:
    def function(module: Any, points: Tensor) -> Tensor:
        return module.x.sum().reshape(1, 1) - 1

    whole, lagrangian = solved(equality, function, steps=100)
    solved(equality, function, tmp_path, steps=50)
    again, resumed = solved(equality, function, tmp_path, steps=100)
    assert torch.equal(whole.x, again.x) and torch.equal(resumed.multipliers["c"], lagrangian.multipliers["c"])


def test_a_batch_of_points_has_the_multipliers_of_its_points() -> None:
    points = torch.arange(6.0).unsqueeze(1)
    lagrangian = AugmentedLagrangian({"c": Constraint(equality, lambda module, rows: rows, points)}, weight=1e-9,
                                     batch=3)
    lagrangian.multipliers["c"] = points.clone()
    value = lagrangian.terms(Point())["c"].item()  # mean of λΦ = points² over three of them
    assert value > 0 and abs(3 * value - round(3 * value)) < 1e-5


@pytest.mark.parametrize("wrong", [
    dict(weight=0.0), dict(growth=0.5), dict(every=0), dict(batch=0), dict(tolerance=-1.0), dict(constraints={}),
])
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="give|without"):
        AugmentedLagrangian(**{"constraints": {"c": Constraint(equality, lambda m, p: p, HERE)}, **wrong})


def test_wrong_constraints_are_refused() -> None:
    with pytest.raises(ValueError, match="choose equality or inequality"):
        Constraint(raised, lambda m, p: p, HERE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one row"):
        Constraint(equality, lambda m, p: p, HERE[:0])
