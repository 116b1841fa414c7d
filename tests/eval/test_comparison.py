"""What a comparison prints: ratios, their geometric mean, distances where there are any, and a picture."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from eval.comparison import OURS, Record, markdown, mean_ratio, picture, ratio


def row(nfe: int, peer: float, ours: float, **further: float) -> Record:
    return {"model": "m", "nfe": nfe, "peer": "DDIM", "peer_rms": peer, **further,
            **{key: value for who in OURS for key, value in ((who, "ours"), (f"{who}_rms", ours))}}


def test_the_mean_of_the_ratios_is_geometric() -> None:
    rows = [row(4, 1.0, 0.5), row(8, 0.1, 0.2)]
    assert [ratio(r) for r in rows] == pytest.approx([0.5, 2.0])
    assert math.isclose(mean_ratio(rows), 1.0)


def test_the_table_has_a_line_a_row_and_distances_where_they_were_measured() -> None:
    distances = {f"{who}_distance": 3.0 for who in ("peer", "calibrated", "auto", "solution")}
    errors, measured = markdown([row(4, 1.0, 0.5), row(8, 0.1, 0.05, **distances)]).split("\n\n")
    assert "| m | 4 | 1.0000 DDIM | 0.5000 ours | 0.50 |" in errors and "| geometric mean | | | | 0.50 |" in errors
    assert len(errors.splitlines()) == 5 and measured.splitlines()[2] == "| m | 8 | 3.00 | 3.00 | 3.00 | 3.00 |"


def test_the_picture_is_written(tmp_path: Path) -> None:
    picture(tmp_path / "p.png", [row(4, 1.0, 0.5), row(8, 0.1, 0.05)])
    assert 1000 < (tmp_path / "p.png").stat().st_size < 120_000
