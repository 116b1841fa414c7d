"""Checkpoints of score_sde: the averaged weights, in the network that their shapes tell of."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from scoremodels.loaders import load, save
from scoremodels.schedule import EDM, ContinuousVP, DiscreteVP, NoiseSchedule
from tests.scoremodels.published_files import (
    PUBLISHED,
    assert_equal_but_for_rounding,
    picked,
    score_sde_checkpoint,
    states,
)


@pytest.fixture
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint of the case that the test asks for, in a folder that names no process."""
    path = tmp_path / "run" / "checkpoint_8.pth"
    score_sde_checkpoint(request.param, path)
    return path


@pytest.mark.parametrize("checkpoint", ["score-sde-vp"], indirect=True)
def test_a_vp_network_gives_the_noise_that_its_authors_code_gives(checkpoint: Path, tmp_path: Path) -> None:
    model = load(checkpoint, settings={"sde": "vp"})
    assert (model.schedule, model.prediction, model.shape) == (ContinuousVP(), "epsilon", (3, 32, 32))
    save(model, tmp_path / "converted")
    for t, expected in PUBLISHED["score-sde-vp"]["outputs"]:
        x = states(model.shape)
        assert_equal_but_for_rounding(picked(model(x, t)), torch.tensor(expected))
        assert torch.equal(load(tmp_path / "converted")(x, t), model(x, t))


@pytest.mark.parametrize(("checkpoint", "case"), [(case, case) for case in ("score-sde-ve", "score-sde-ve-skip")],
                         indirect=["checkpoint"])
def test_a_ve_network_gives_sigma_times_the_score_on_twice_the_range(checkpoint: Path, case: str) -> None:
    model = load(checkpoint)
    high, low = PUBLISHED[case]["sigmas"]
    assert (model.schedule, model.prediction) == (EDM(2 * low, 2.0 * high), "epsilon")
    for sigma, expected in PUBLISHED[case]["outputs"]:
        x = states(model.shape, math.sqrt(1 + sigma**2))
        assert_equal_but_for_rounding(picked(model.noise(x, 2 * sigma)), torch.tensor(expected))


@pytest.mark.parametrize(("config", "schedule"), [
    ("cifar10_ddpmpp_deep_continuous", ContinuousVP()), ("cifar10_ddpmpp", DiscreteVP.linear())])
def test_a_folder_tells_the_process(tmp_path: Path, config: str, schedule: NoiseSchedule) -> None:
    path = tmp_path / "vp" / config / "checkpoint_8.pth"
    score_sde_checkpoint("score-sde-vp", path)
    model = load(path)
    assert model.schedule == schedule
    if config == "cifar10_ddpmpp":  # trained at whole steps, which are what the network is told
        t, expected = PUBLISHED["score-sde-vp"]["outputs"][2]
        assert_equal_but_for_rounding(picked(model(states(model.shape), 999 * t)), torch.tensor(expected))


@pytest.mark.parametrize("checkpoint", ["score-sde-vp"], indirect=True)
def test_a_process_that_nothing_tells_is_asked_for(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="settings={'sde': 'vp'}"):
        load(checkpoint)
    with pytest.raises(ValueError, match="one of vp, vp-discrete, ve"):
        load(checkpoint, settings={"sde": "subvp"})
    with pytest.raises(ValueError, match="takes sde, image_size"):
        load(checkpoint, settings={"process": "vp"})


@pytest.mark.parametrize("checkpoint", ["score-sde-vp"], indirect=True)
def test_a_ve_network_that_was_trained_at_whole_steps_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="whole steps"):
        load(checkpoint, settings={"sde": "ve"})


def test_the_sub_vp_process_is_refused(tmp_path: Path) -> None:
    score_sde_checkpoint("score-sde-vp", tmp_path / "subvp" / "checkpoint_8.pth")
    with pytest.raises(ValueError, match="sub-VP"):
        load(tmp_path / "subvp" / "checkpoint_8.pth")


@pytest.mark.parametrize("checkpoint", ["score-sde-vp"], indirect=True)
def test_averages_that_do_not_fit_are_refused(checkpoint: Path) -> None:
    found = torch.load(checkpoint, weights_only=True)
    found["ema"]["shadow_params"].pop()
    torch.save(found, checkpoint)
    with pytest.raises(ValueError, match="averaged parameters that do not fit"):
        load(checkpoint, settings={"sde": "vp"})
