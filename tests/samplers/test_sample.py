"""Drawing samples: budgets, seeds, batches, shapes, guidance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from samplers import SOLVERS, ClassifierFreeGuidance, DynamicThresholding, Solver, compile_plan, sample
from samplers.thresholding import threshold
from scoremodels.analytic import MixtureModel
from scoremodels.model import ScoreModel
from scoremodels.schedule import EDM, DiscreteVP

PLANNED = [name for name, solver in SOLVERS.items() if isinstance(solver, Solver)]


class _Counting(nn.Module):
    """A smooth denoiser of 1×4×4 images that counts its calls and may know three labels."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.batches: list[int] = []
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        self.calls += 1
        self.batches.append(len(x))
        label = torch.zeros(len(x)) if condition is None else torch.where(condition == 3, 0.0, condition + 1.0)
        return torch.tanh(x + self.shift + label[:, None, None, None]) / (1 + t[:, None, None, None])


def model(num_classes: int = 0, **options: bool) -> ScoreModel:
    return ScoreModel(_Counting(), EDM(), "sample", (1, 4, 4), num_classes=num_classes, **options)


@pytest.mark.parametrize("solver", PLANNED)
@pytest.mark.parametrize("nfe", [1, 2, 5, 8, 13])
def test_the_evaluations_asked_for_are_those_spent(solver: str, nfe: int) -> None:
    tested = model()
    result = sample(tested, num=3, solver=solver, nfe=nfe)
    assert result.nfe == nfe == tested.network.calls
    assert result.samples.shape == (3, 1, 4, 4) and result.samples.isfinite().all()


@pytest.mark.parametrize("solver", ["dpm-solver-12", "dpm-solver-23"])
def test_adaptive_solvers_report_what_they_spent(solver: str) -> None:
    tested = model()
    result = sample(tested, num=3, solver=solver)
    assert result.nfe == tested.network.calls and result.plan is None


@pytest.mark.parametrize("solver", list(SOLVERS))
def test_a_sample_does_not_depend_on_its_batch(solver: str) -> None:
    tested = model()
    together = sample(tested, num=5, solver=solver, nfe=6, seed=10).samples
    apart = sample(tested, num=5, solver=solver, nfe=6, seed=10, batch=2).samples
    alone = sample(tested, num=1, solver=solver, nfe=6, seed=13).samples
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together[3:4], alone, rtol=1e-5, atol=1e-5)


def test_seeds_decide_and_the_global_seed_does_not() -> None:
    tested = model()
    torch.manual_seed(1)
    first = sample(tested, num=2, solver="ddpm", nfe=4, seed=5).samples
    torch.manual_seed(2)
    assert torch.equal(first, sample(tested, num=2, solver="ddpm", nfe=4, seed=5).samples)
    assert not torch.equal(first, sample(tested, num=2, solver="ddpm", nfe=4, seed=6).samples)


def test_all_solvers_agree_at_many_evaluations() -> None:
    mixture = MixtureModel([[-1.0], [0.6]], [0.2, 0.3], [0.4, 0.6], EDM())
    x0 = torch.linspace(-60, 60, 7, dtype=torch.float64)[:, None]
    reference = sample(mixture, x_T=x0, solver="dpm-solver-3", nfe=600, end="minimum").samples
    for name in PLANNED:
        if not SOLVERS[name].stochastic:
            result = sample(mixture, x_T=x0, solver=name, nfe=300, end="minimum").samples
            tolerance = 0.1 if SOLVERS[name].order == 1 else 3e-3
            torch.testing.assert_close(result, reference, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_samples_keep_the_dtype_of_the_start_states(dtype: torch.dtype) -> None:
    assert sample(model(), x_T=torch.ones(2, 1, 4, 4, dtype=dtype)).samples.dtype == dtype


def test_a_plan_can_be_given_instead_of_a_solver() -> None:
    tested = model()
    plan = compile_plan("dpm-solver++-3m", tested.schedule, nfe=7, grid="karras", prediction="sample")
    given = sample(tested, num=2, plan=plan)
    assert given.plan is plan
    assert torch.equal(given.samples, sample(tested, num=2, solver="dpm-solver++-3m", nfe=7, grid="karras").samples)


@pytest.mark.parametrize(("arguments", "match"), [
    (dict(solver="ddimm"), "did you mean 'ddim'"), (dict(grid="karass"), "did you mean 'karras'"),
    (dict(nfe=0), "nfe=0"), (dict(num=0), "num=0"), (dict(num=2.5), "num=2.5"), (dict(batch=0), "batch=0"),
    (dict(x_T=torch.ones(2, 3, 4, 4)), "x_T has shape"), (dict(x_T=torch.ones(2, 1, 4, 4), num=3), "num=3"),
    (dict(x_T=torch.full((1, 1, 4, 4), torch.nan)), "non-finite"), (dict(condition=1), "unconditional"),
    (dict(x_T=torch.ones(2, 1, 4, 4, dtype=torch.long)), "dtype"), (dict(grid=[80.0, 1.0, 2.0], nfe=2), "decrease"),
    (dict(grid=[80.0, float("nan"), 0.0], nfe=2), "finite"), (dict(end="dirty"), "end="),
])
def test_bad_arguments_are_refused_before_any_evaluation(arguments: dict, match: str) -> None:
    tested = model()
    with pytest.raises(ValueError, match=match):
        sample(tested, **arguments)
    assert tested.network.calls == 0


@pytest.mark.parametrize("condition", [3, -1, torch.tensor([0, 1]), torch.tensor(0.5), torch.tensor([0, 1, 5])])
def test_bad_labels_are_refused_before_any_evaluation(condition: object) -> None:
    tested = model(num_classes=3)
    with pytest.raises(ValueError, match="condition"):
        sample(tested, num=3, condition=condition)  # type: ignore[arg-type]
    assert tested.network.calls == 0


def test_guidance_mixes_the_two_predictions() -> None:
    tested = model(num_classes=3)
    x, labels = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2])
    conditional, unconditional = tested(x, 2.0, labels), tested(x, 2.0)
    guided = ClassifierFreeGuidance(tested, 3.5)(x, 2.0, labels)
    torch.testing.assert_close(guided, unconditional + 3.5 * (conditional - unconditional))


@pytest.mark.parametrize(("scale", "labels"), [(1.0, True), (0.0, True), (4.0, False)])
def test_trivial_guidance_costs_one_plain_evaluation(scale: float, labels: bool) -> None:
    tested = model(num_classes=3)
    sample(ClassifierFreeGuidance(tested, scale), num=2, nfe=4, condition=1 if labels else None)
    assert tested.network.batches == [2] * 4


def test_guidance_evaluates_both_branches_in_one_batch() -> None:
    tested = model(num_classes=3)
    assert sample(ClassifierFreeGuidance(tested, 2.0), num=2, nfe=4, condition=1).nfe == 4
    assert tested.network.batches == [4] * 4


def test_guidance_needs_a_model_that_knows_no_label() -> None:
    for unfit in (model(), model(num_classes=3, label_dropout=False)):
        with pytest.raises(ValueError, match="guidance needs"):
            ClassifierFreeGuidance(unfit, 2.0)
    with pytest.raises(ValueError, match="scale=nan"):
        ClassifierFreeGuidance(model(num_classes=3), float("nan"))


def test_thresholding_keeps_samples_in_range() -> None:
    linear = ScoreModel(lambda x, t, c: x, DiscreteVP.linear(), "epsilon", (1, 4, 4))
    result = sample(DynamicThresholding(linear, 0.9), num=4, nfe=6).samples
    assert result.abs().max() <= 1.0 + 1e-6


def test_thresholding_leaves_samples_in_range_alone() -> None:
    x0 = torch.linspace(-1, 1, 32).reshape(2, 1, 4, 4)
    assert torch.equal(threshold(x0, 0.995, 10.0), x0)


def test_thresholding_divides_by_the_quantile_of_each_sample() -> None:
    x0 = torch.stack([torch.linspace(0, 4, 101), torch.linspace(0, 0.5, 101)])
    result = threshold(x0, 0.75, float("inf"))
    torch.testing.assert_close(result[0], (x0[0] / 3).clamp(max=1.0))
    torch.testing.assert_close(result[1], x0[1])


@pytest.mark.parametrize("arguments", [dict(quantile=0.0), dict(quantile=1.5), dict(maximum=0.5)])
def test_thresholding_refuses_numbers_out_of_range(arguments: dict) -> None:
    with pytest.raises(ValueError, match="="):
        DynamicThresholding(model(), **arguments)


def test_adaptive_solvers_take_no_grid() -> None:
    with pytest.raises(ValueError, match="chooses its own times"):
        sample(model(), solver="dpm-solver-12", grid="karras")


def test_models_in_sigma_are_sampled_on_karras_times_by_default() -> None:
    karras = compile_plan("ddim", EDM(), nfe=6, grid="karras", prediction="sample")
    assert compile_plan("ddim", EDM(), nfe=6, prediction="sample").rows == karras.rows
