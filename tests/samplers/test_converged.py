"""The solution that is kept: found again for the same model and noises, and for no others."""

from __future__ import annotations

from pathlib import Path

import torch

from samplers import ClassifierFreeGuidance, sample
from samplers.converged import REFERENCE, converged, fingerprint
from scoremodels.analytic import MixtureModel
from scoremodels.loaders import load
from scoremodels.model import ScoreModel
from scoremodels.schedule import EDM


def mixture(std: float = 0.2) -> ScoreModel:
    means = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(3))
    return MixtureModel(means, torch.full((5,), std), torch.ones(5), EDM())


def test_a_folder_keeps_it_for_another_process(tmp_path: Path) -> None:
    first = converged(mixture(), 4, 9, folder=tmp_path)
    again = converged(mixture(), 4, 9, folder=tmp_path)  # another object, as after a new start
    assert (first.evaluations, again.evaluations) == (4 * REFERENCE[2], 0)
    assert torch.equal(first.samples, again.samples)
    solver, grid, nfe = REFERENCE
    exact = sample(mixture(), num=4, seed=9, solver=solver, grid=grid, nfe=nfe, end="clean").samples
    torch.testing.assert_close(first.samples, exact.double())


def test_other_noises_or_weights_are_solved_anew(tmp_path: Path) -> None:
    converged(mixture(), 4, 9, folder=tmp_path)
    for model, num, seed in ((mixture(), 4, 10), (mixture(), 5, 9), (mixture(0.3), 4, 9)):
        assert converged(model, num, seed, folder=tmp_path).evaluations > 0
    assert len(list(tmp_path.iterdir())) == 4


def test_guidance_and_labels_are_part_of_the_name() -> None:
    model, labels = load("fashion-mnist-edm"), torch.tensor([3])
    names = {fingerprint(m, 1, 0, label) for m in (model, ClassifierFreeGuidance(model, 2.0),
                                                   ClassifierFreeGuidance(model, 3.0))
             for label in (labels, torch.tensor([4]))}
    assert len(names) == 6


def test_weights_that_changed_in_place_are_solved_anew() -> None:
    model = load("fashion-mnist-flow")
    before = fingerprint(model, 1, 0, None)
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    assert fingerprint(model, 1, 0, None) != before
