"""States that are trees: equal to flat ones in every driver, and what is refused."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from odecore.driver.integrate import integrate
from odecore.driver.pytree import Layout
from odecore.driver.solution import SolveError
from odecore.driver.solve import solve
from odecore.explicit.embedded import DORMAND_PRINCE
from odecore.exponential.linear import Diagonal
from odecore.gradients.checkpointed import integrate_checkpointed, solve_checkpointed
from odecore.implicit.additive import KENCARP3
from odecore.problem import Semilinear, Separable, Split


class Body(NamedTuple):
    position: Tensor
    velocity: Tensor


def mixed() -> dict[str, Any]:
    """Two samples of a vector, and in a list a matrix and a number."""
    values = torch.arange(1.0, 17.0, dtype=torch.float64).sin().reshape(2, 8)
    return {"body": Body(values[:, :1], values[:, 1:2]), "rest": [values[:, 2:8].reshape(2, 2, 3), ()],
            "number": values[:, 0].clone()}


def field(tree: dict[str, Any], t: Tensor) -> dict[str, Any]:
    """In another order of keys than the state's."""
    body, (matrix, _), number = tree["body"], tree["rest"], tree["number"]
    return {"number": -number * torch.cos(t), "rest": [-matrix.sin(), ()],
            "body": Body(body.velocity, -body.position * number.unsqueeze(1))}


def flat_field(y: Tensor, t: Tensor) -> Tensor:
    layout = Layout(mixed())
    return layout.flat(field(layout.tree(y), t))


def assert_equal(actual: Any, expected: Any) -> None:
    assert type(actual) is type(expected)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_a_tree_is_read_back_as_it_was_written() -> None:
    tree = mixed()
    layout = Layout(tree)
    flat = layout.flat(tree)
    assert flat.shape == (2, 9)
    back = layout.tree(flat)
    assert isinstance(back["body"], Body) and back["rest"][1] == () and list(back) == ["body", "rest", "number"]
    assert torch.equal(layout.flat(back), flat) and back["rest"][0].shape == (2, 2, 3)


def test_states_without_elements_and_without_samples_have_a_place() -> None:
    for samples, width in ((2, 0), (0, 3), (0, 0)):
        tree = (torch.ones(samples, width), torch.ones(samples, 2))
        layout = Layout(tree)
        assert layout.flat(tree).shape == (samples, width + 2)
        assert [part.shape for part in layout.tree(layout.flat(tree))] == [(samples, width), (samples, 2)]


def test_solutions_of_trees_are_those_of_flat_states() -> None:
    layout, times = Layout(mixed()), torch.linspace(0, 2, 5)
    options: dict = {"rtol": 1e-5, "atol": 1e-5, "ts": times, "dense": True}
    tree = solve(DORMAND_PRINCE, field, mixed(), 0.0, 2.0, **options)
    flat = solve(DORMAND_PRINCE, flat_field, layout.flat(mixed()), 0.0, 2.0, **options)
    assert torch.equal(layout.flat(tree.y), flat.y) and tree.nfe == flat.nfe
    assert tree.ys["rest"][0].shape == (2, 5, 2, 3) and tree.ys["number"].shape == (2, 5)
    for index, t in enumerate(times):
        at = layout.tree(flat.ys[:, index])
        assert_equal(tree.ys["body"].velocity[:, index], at["body"].velocity)
        assert torch.equal(layout.flat(tree.dense(float(t))), flat.dense(float(t)))
    assert tree.dense(times)["rest"][0].shape == (2, 5, 2, 3)


def test_fixed_grids_and_checkpoints_take_trees_and_give_their_gradients() -> None:
    tree, times = mixed(), torch.linspace(0, 1, 6, dtype=torch.float64)
    leaf = tree["number"].requires_grad_()
    states = integrate(DORMAND_PRINCE, field, tree, times, trajectory=True)
    assert states.ys["rest"][0].shape == (2, 6, 2, 3)
    stored = integrate_checkpointed(DORMAND_PRINCE, field, tree, times, states=2)
    assert_equal(stored["body"].position.detach(), states.y["body"].position.detach())
    gradients = [torch.autograd.grad(result["body"].position.sum(), leaf)[0] for result in (states.y, stored)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-12)
    at = solve_checkpointed(DORMAND_PRINCE, field, tree, 0.0, 1.0, rtol=1e-4, atol=1e-4, ts=times)
    assert at["rest"][0].shape == (2, 6, 2, 3)


def test_split_and_semilinear_problems_take_trees() -> None:
    y0 = {"a": torch.tensor([[0.7], [0.1]], dtype=torch.float64), "b": torch.tensor([1.0, -1.0], dtype=torch.float64)}
    split = Split(lambda y, t: {"a": torch.sin(y["b"]).unsqueeze(1), "b": torch.cos(t)},
                  lambda y, t: {"a": -20 * y["a"], "b": -y["b"]})
    semilinear = Semilinear(Diagonal(torch.tensor([-20.0, -1.0], dtype=torch.float64)), split.explicit)
    reference = solve(DORMAND_PRINCE, split, y0, 0.0, 1.0, rtol=1e-9, atol=1e-9).y
    for problem in (split, semilinear):
        solution = solve(KENCARP3, problem, y0, 0.0, 1.0, rtol=1e-5, atol=1e-5).y
        torch.testing.assert_close(solution, reference, rtol=0, atol=1e-4)


def test_a_failed_solve_hands_back_trees() -> None:
    y0 = {"y": torch.tensor([0.5, 2.0], dtype=torch.float64)}
    with pytest.raises(SolveError, match="sample 1") as caught:
        solve(DORMAND_PRINCE, lambda y, t: {"y": y["y"] ** 2}, y0, 0.0, 1.0, rtol=1e-6, atol=1e-6)
    assert caught.value.solution.y["y"][0].item() == pytest.approx(1.0, rel=1e-4)


def test_arguments_go_with_the_samples_of_a_tree() -> None:
    y0 = {"y": torch.ones(2, 1, dtype=torch.float64)}
    k = torch.tensor([1.0, 40.0], dtype=torch.float64)
    solution = solve(DORMAND_PRINCE, lambda y, t, k: {"y": -k.unsqueeze(1) * y["y"]}, y0, 0.0, 1.0, rtol=1e-8,
                     atol=1e-8, args=(k,))
    torch.testing.assert_close(solution.y["y"].squeeze(1), torch.exp(-k), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("tree", "match"), [
    ({}, "no tensors"), ({"a": 1.0}, r"y0\['a'\] is float"), (None, "NoneType"),
    ((torch.ones(2), torch.ones(3)), r"y0\[1\] has shape \(3,\)"), ([torch.tensor(1.0)], "shape"),
    ([torch.ones(2), torch.ones(2, dtype=torch.float64)], r"y0\[1\] has dtype torch.float64")])
def test_trees_that_are_no_states_are_refused(tree: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        solve(DORMAND_PRINCE, lambda y, t: y, tree, 0.0, 1.0, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("value", "match"), [
    (torch.ones(2, 1), "the field's value has the keys Tensor"), ({"a": torch.ones(2, 1)}, r"keys \['a'\]"),
    ({"a": torch.ones(2, 2), "b": [torch.ones(2)]}, r"value\['a'\] has shape \(2, 2\)"),
    ({"a": torch.ones(2, 1), "b": []}, r"value\['b'\] is list: give 1 parts"),
    ({"a": torch.ones(2, 1), "b": [2.0]}, r"value\['b'\]\[0\] is float")])
def test_fields_that_return_another_tree_are_refused(value: Any, match: str) -> None:
    y0 = {"a": torch.ones(2, 1), "b": [torch.ones(2)]}
    with pytest.raises(ValueError, match=match):
        solve(DORMAND_PRINCE, lambda y, t: value, y0, 0.0, 1.0, rtol=1e-3, atol=1e-3)


def test_separable_problems_have_no_trees() -> None:
    y0 = {"q": torch.ones(2, 1), "p": torch.ones(2, 1)}
    with pytest.raises(ValueError, match="stack them"):
        integrate(DORMAND_PRINCE, Separable(lambda p, t: p, lambda q, t: -q), y0, [0.0, 1.0])
