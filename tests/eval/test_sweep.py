"""Sweeps: cells, measurements and what they do not depend on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from eval.features import fashion_mnist_features, fashion_mnist_reference
from eval.sweep import Sampling, cycled_labels, measure, plan_cells, solve_reference
from samplers import SOLVERS, AdaptiveSolver, sample
from scoremodels.model import ScoreModel

Make = Callable[..., ScoreModel]
SAMPLING = Sampling(num=10, seed=3, batch=4, compared=6, reference_nfe=16)


def test_every_solver_spends_the_evaluations_that_were_asked_for(gaussian_model: Make) -> None:
    model = gaussian_model()
    fixed = [name for name, solver in SOLVERS.items() if not isinstance(solver, AdaptiveSolver)]
    for cell in plan_cells(model, fixed, [5]):
        model.network.calls = 0
        measurement = measure(model, cell, replace(SAMPLING, batch=10))
        assert measurement.nfe == model.network.calls == 5, cell.solver


def test_an_adaptive_solver_makes_one_cell_and_reports_what_it_spent(gaussian_model: Make) -> None:
    model = gaussian_model()
    (cell,) = plan_cells(model, ["dpm-solver-12"], [5, 8])
    measurement = measure(model, cell, replace(SAMPLING, batch=10))
    assert measurement.nfe == model.network.calls > 0


def test_cells_are_all_combinations_without_repetition(gaussian_model: Make) -> None:
    cells = plan_cells(gaussian_model(), ["ddim", "ddim", "edm-heun"], [7, 5, 7], ["karras", "log-snr"])
    assert [(c.solver, c.grid, c.nfe) for c in cells] == [
        (s, g, n) for s in ("ddim", "edm-heun") for g in ("karras", "log-snr") for n in (7, 5)]


def test_measurements_do_not_depend_on_the_batch(gaussian_model: Make) -> None:
    model = gaussian_model()
    extractor, target = fashion_mnist_features(), fashion_mnist_reference()
    (cell,) = plan_cells(model, ["dpm-solver++-2m"], [6])
    results = []
    for batch in (4, 10):
        sampling = replace(SAMPLING, batch=batch)
        results.append(measure(model, cell, sampling, extractor=extractor, target=target,
                               reference=solve_reference(model, sampling)))
    assert results[0].distance == pytest.approx(results[1].distance, rel=1e-4)
    assert results[0].trajectory_rms == pytest.approx(results[1].trajectory_rms, rel=1e-3)
    assert (results[0].images.int() - results[1].images.int()).abs().max() <= 1


def test_pictures_show_the_samples_of_their_seeds(gaussian_model: Make) -> None:
    model = gaussian_model()
    (cell,) = plan_cells(model, ["ddim"], [5])
    images = measure(model, cell, SAMPLING).images
    alone = sample(model, num=1, solver="ddim", nfe=5, seed=SAMPLING.seed + 7).samples[0]
    torch.testing.assert_close(images[7].float() / 127.5 - 1, alone.clamp(-1, 1), atol=0.5 / 127.5 + 1e-5, rtol=0)


def test_a_sampler_that_adds_noise_has_no_trajectory_error(gaussian_model: Make) -> None:
    model = gaussian_model()
    (cell,) = plan_cells(model, ["ddpm"], [5])
    measurement = measure(model, cell, SAMPLING, reference=solve_reference(model, SAMPLING))
    assert cell.stochastic and measurement.trajectory_rms is None


def test_trajectory_errors_fall_with_more_evaluations(gaussian_model: Make) -> None:
    model = gaussian_model()
    reference = solve_reference(model, replace(SAMPLING, reference_nfe=128))
    for solver in ("ddim", "dpm-solver-3", "dpm-solver++-2m", "edm-heun"):
        errors = [measure(model, cell, SAMPLING, reference=reference).trajectory_rms
                  for cell in plan_cells(model, [solver], [9, 27], ["log-snr"])]
        assert errors[1] < errors[0] / 2.5, solver


def test_samples_that_are_not_finite_give_a_note(gaussian_model: Make) -> None:
    model = gaussian_model(float("nan"))
    (cell,) = plan_cells(model, ["ddim"], [5])
    measurement = measure(model, cell, SAMPLING, extractor=fashion_mnist_features(), target=fashion_mnist_reference())
    assert measurement.distance is None and "diverged" in measurement.note


def test_labels_go_round_the_classes(gaussian_model: Make) -> None:
    labels = cycled_labels(gaussian_model(num_classes=3), 7)
    assert labels is not None and labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert cycled_labels(gaussian_model(), 7) is None


@pytest.mark.parametrize(("solvers", "nfes", "grids", "message"), [
    (["dimm"], [5], [None], "did you mean 'ddim'"),
    (["ddim"], [5], ["log-sn"], "did you mean 'log-snr'"),
    (["ddim"], [5, 0], [None], "nfe=0"),
    ([], [5], [None], "at least one"),
    (["ddim"], [], [None], "at least one"),
])
def test_wrong_cells_are_refused_before_any_evaluation(
    gaussian_model: Make, solvers: list[str], nfes: list[int], grids: list[str | None], message: str
) -> None:
    model = gaussian_model()
    with pytest.raises(ValueError, match=message):
        plan_cells(model, solvers, nfes, grids)
    assert model.network.calls == 0


@pytest.mark.parametrize("wrong", [{"num": 1}, {"seed": -1}, {"batch": 0}, {"compared": -1}, {"reference_nfe": 4}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
        Sampling(**wrong)
