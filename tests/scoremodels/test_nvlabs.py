"""EDM's and EDM2's pickles: read without being run, and equal to the authors' networks."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from scoremodels.loaders import load, save
from scoremodels.schedule import EDM, ContinuousVP, DiscreteVP
from tests.scoremodels.published_files import (
    LABELS,
    PUBLISHED,
    assert_equal_but_for_rounding,
    nvlabs_pickle,
    picked,
    states,
)

CASES = [case for case in PUBLISHED if "whole" in PUBLISHED[case]]


@pytest.fixture
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The pickle of the case that the test asks for."""
    path = tmp_path / "network-snapshot.pkl"
    nvlabs_pickle(request.param, path, monkeypatch, f"open({str(tmp_path / 'ran')!r}, 'w')")
    return path


@pytest.mark.parametrize(("checkpoint", "case"), [(case, case) for case in CASES], indirect=["checkpoint"])
def test_a_network_denoises_as_its_authors_code_does(checkpoint: Path, case: str, tmp_path: Path) -> None:
    model = load(checkpoint)
    save(model, tmp_path / "converted")
    checkpoint.unlink()
    converted = load(tmp_path / "converted")
    labels = LABELS if model.num_classes else None
    for sigma, expected in PUBLISHED[case]["outputs"]:
        time = model.schedule.time_of_ratio(sigma)
        x = model.schedule.alpha(time) * states(model.shape, math.sqrt(1 + sigma**2))
        assert_equal_but_for_rounding(picked(model.denoise(x, time, labels)), torch.tensor(expected))
        assert torch.equal(converted.denoise(x, time, labels), model.denoise(x, time, labels))


@pytest.mark.parametrize(("checkpoint", "schedule", "prediction", "classes"), [
    ("edm-ddpmpp", EDM(), "sample", 3), ("vp-ddpmpp", ContinuousVP(), "epsilon", 0), ("edm2", EDM(), "sample", 3),
    ("ve-ncsnpp", EDM(0.02, 100.0), "epsilon", 0), ("iddpm-adm", DiscreteVP.cosine(), "epsilon", 3),
], indirect=["checkpoint"])
def test_the_preconditioning_gives_the_schedule(
    checkpoint: Path, schedule: object, prediction: str, classes: int
) -> None:
    model = load(checkpoint)
    assert (model.schedule, model.prediction, model.num_classes) == (schedule, prediction, classes)
    assert (model.shape, model.value_range, model.label_dropout) == ((3, 8, 8), (-1.0, 1.0), False)


@pytest.mark.parametrize("checkpoint", ["edm-adm"], indirect=True)
def test_the_code_in_a_pickle_is_not_run(checkpoint: Path, tmp_path: Path) -> None:
    load(checkpoint)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("checkpoint", ["edm-ddpmpp"], indirect=True)
@pytest.mark.parametrize("name", ["network.bin", "network", "network.weights.pt"])
def test_the_name_of_the_file_plays_no_part(checkpoint: Path, name: str) -> None:
    assert load(checkpoint.rename(checkpoint.with_name(name))).num_classes == 3


@pytest.mark.parametrize(("change", "match"), [
    (lambda case: case["whole"].__setitem__(0, "MyPrecond"), "MyPrecond"),
    (lambda case: case["part"].__setitem__(0, "MyUNet"), "MyUNet"),
    (lambda case: case["part"][1].update(window=3), "window"),
    (lambda case: case["part"][1].update(channel_mult=[1, 3]), "does not fit"),
])
def test_an_architecture_that_was_not_published_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: object, match: str
) -> None:
    import copy

    from tests.scoremodels import published_files

    case = copy.deepcopy(PUBLISHED["edm-ddpmpp"])
    change(case)
    monkeypatch.setitem(published_files.PUBLISHED, "changed", case)
    nvlabs_pickle("changed", tmp_path / "x.pkl", monkeypatch)
    with pytest.raises(ValueError, match=match):
        load(tmp_path / "x.pkl")


@pytest.mark.parametrize("checkpoint", ["edm-ddpmpp"], indirect=True)
def test_a_truncated_pickle_is_called_damaged(checkpoint: Path) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:-500])
    with pytest.raises(ValueError, match="damaged or truncated"):
        load(checkpoint)
