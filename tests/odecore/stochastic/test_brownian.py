"""Brownian motion: the generator, independence of batch and order, additivity, laws."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from odecore.stochastic.brownian import BrownianMotion, philox

SAMPLES = 20_000
"""A variance is then known to a relative standard error of √(2/20000) = .01, a correlation to .007."""


def word(*values: int) -> tuple[Tensor, ...]:
    return tuple(torch.tensor([value], dtype=torch.int64) for value in values)


@pytest.mark.parametrize(("counter", "key", "expected"), [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1))])
def test_the_generator_gives_its_known_answers(
    counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert tuple(int(w) for w in philox(word(*counter), word(*key))) == expected


def test_a_sample_does_not_depend_on_its_batch() -> None:
    together, alone = BrownianMotion([7, -3, 2**62], (2, 3)), BrownianMotion([-3], (2, 3))
    assert torch.equal(together(0.3)[1:2], alone(0.3))
    assert torch.equal(together.increment(0.2, 0.9).levy[1:2], alone.increment(0.2, 0.9).levy)


def test_values_do_not_depend_on_what_was_asked_before() -> None:
    motion, other = BrownianMotion([1, 2], (3,)), BrownianMotion([1, 2], (3,))
    forwards = [motion(t / 10) for t in range(11)]
    backwards = [other(t / 10) for t in reversed(range(11))]
    assert all(torch.equal(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))


def test_each_sample_may_be_asked_at_its_own_time() -> None:
    motion = BrownianMotion([1, 2, 3], (2,), start=-1.0, end=2.0)
    times = torch.tensor([-0.5, 1.9, 2.0], dtype=torch.float64)
    each = torch.stack([motion(float(t))[i] for i, t in enumerate(times)])
    assert torch.equal(motion(times), each)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=3, max_size=3, unique=True))
def test_increments_add_up_to_rounding(times: list[float]) -> None:
    s, t, u = times
    motion = BrownianMotion([5, 6], (2,))
    total = motion.increment(s, t).w + motion.increment(t, u).w
    torch.testing.assert_close(total, motion.increment(s, u).w, rtol=0, atol=1e-14)


def test_areas_of_two_intervals_give_that_of_both() -> None:
    motion = BrownianMotion([5, 6], (2,))
    s, t, u = 0.1, 0.4, 0.9
    (w1, h1), (w2, h2), (_, h) = motion.increment(s, t), motion.increment(t, u), motion.increment(s, u)
    a, b = (t - s) / (u - s), (u - t) / (u - s)
    torch.testing.assert_close(a * h1 + b * h2 + 0.5 * (b * w1 - a * w2), h, rtol=0, atol=1e-13)


def test_the_area_is_the_integral_of_the_path() -> None:
    motion = BrownianMotion([5], (1,), levels=6)
    grid = torch.linspace(0.25, 0.75, 129, dtype=torch.float64)
    path = torch.cat([motion(float(t)).flatten() for t in grid])
    w, h = motion.increment(0.25, 0.75)
    bridge = path - path[0] - (grid - 0.25) / 0.5 * w.item()
    # Simpson's rule is exact for the parabolas of the smallest intervals, which each hold four of the grid's.
    weights = torch.tensor([1.0, 4.0] * 64 + [1.0], dtype=torch.float64)
    weights[2:-1:2] = 2.0
    assert (weights @ bridge).item() / 384 == pytest.approx(h.item(), abs=1e-12)


def test_the_path_runs_backwards() -> None:
    motion = BrownianMotion([5, 6], (2,))
    there, back = motion.increment(0.2, 0.7), motion.increment(0.7, 0.2)
    torch.testing.assert_close(back.w, -there.w, rtol=0, atol=0)
    torch.testing.assert_close(back.levy, there.levy, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("s", "t"), [(0.0, 1.0), (0.3, 0.4), (0.49, 0.52), (0.0, 1 / 1024)])
def test_increments_and_areas_have_their_variances_and_are_independent(s: float, t: float) -> None:
    w, levy = BrownianMotion([11], (SAMPLES,), levels=16).increment(s, t)
    w, levy = w.flatten() / math.sqrt(t - s), levy.flatten() / math.sqrt((t - s) / 12)
    error = 1 / math.sqrt(SAMPLES)
    for normal in (w, levy):
        assert abs(normal.mean().item()) <= 4 * error
        assert abs(normal.var().item() - 1) <= 4 * math.sqrt(2) * error
        assert abs((normal**4).mean().item() - 3) <= 4 * math.sqrt(96) * error
    assert abs((w * levy).mean().item()) <= 4 * error


def test_disjoint_increments_elements_seeds_and_streams_are_independent() -> None:
    motion = BrownianMotion([1, 2], (SAMPLES,), levels=12)
    other = BrownianMotion([1, 2], (SAMPLES,), levels=12, stream=1)
    first, second = motion.increment(0.1, 0.35), motion.increment(0.35, 0.6)
    rows = torch.stack([first.w[0], first.levy[0], second.w[0], second.levy[0], first.w[1],
                        other.increment(0.1, 0.35).w[0], first.w[0].roll(1)])
    correlation = torch.corrcoef(rows) - torch.eye(len(rows))
    assert correlation.abs().max().item() <= 4.5 / math.sqrt(SAMPLES)


def test_the_law_of_increments_passes_a_kolmogorov_smirnov_test() -> None:
    w = BrownianMotion([3], (SAMPLES,), levels=12)(0.7).flatten() / math.sqrt(0.7)
    uniform = torch.special.ndtr(w).sort().values
    grid = torch.arange(1, SAMPLES + 1) / SAMPLES
    # Exceeded with a probability of 1e-4 under the law.
    assert (uniform - grid).abs().max().item() * math.sqrt(SAMPLES) <= 2.23


def test_values_have_the_dtype_asked_for_and_are_made_in_float64() -> None:
    half, full = BrownianMotion([1], (4,), dtype=torch.float16), BrownianMotion([1], (4,))
    assert half(0.5).dtype == torch.float16
    assert torch.equal(half(0.5), full(0.5).half())


@pytest.mark.parametrize(("changes", "match"), [
    ({"seeds": []}, "seeds"), ({"seeds": [2**63]}, "seeds"), ({"shape": (0,)}, "shape"), ({"end": 0.0}, "start before"),
    ({"levels": 0}, "levels=0"), ({"levels": 49}, "levels=49"), ({"stream": -1}, "stream=-1")])
def test_wrong_arguments_raise(changes: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        BrownianMotion(**{"seeds": [1], "shape": (2,), **changes})


def test_times_outside_raise() -> None:
    motion = BrownianMotion([1], (2,))
    with pytest.raises(ValueError, match="outside"):
        motion(1.1)
    with pytest.raises(ValueError, match="two times that differ"):
        motion.increment(0.5, 0.5)
    with pytest.raises(ValueError, match="t has shape"):
        motion(torch.zeros(3))
