"""Interpolants of explicit Runge–Kutta methods, as data: the stages of a step combined at any time within it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum

from odecore.explicit.tableaus import DOP853 as _DOP853_TABLEAU


@dataclass(frozen=True, slots=True)
class Interpolant:
    """Coefficients of ``y(t + θ h) = y + h Σ_j θ^j Σ_i weights[j - 1][i] k_i``, j = 1 … degree.

    Args:
        weights: one row for each power of θ, over the stages of the step and then the extra ones.
        extra: rows of the Butcher matrix of stages that the interpolant needs on top of the step's.
        order: p, where the error within a step is O(h^{p+1}).
        source: where it comes from.

    Raises:
        ValueError: rows of unequal length, or extra stages that do not follow the others.
    """

    weights: tuple[tuple[float, ...], ...]
    order: int
    extra: tuple[tuple[float, ...], ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        stages = len(self.weights[0])
        if any(len(row) != stages for row in self.weights):
            raise ValueError(f"weights={self.weights}: give rows of equal length, one weight a stage")
        if any(len(row) != stages - len(self.extra) + i for i, row in enumerate(self.extra)):
            raise ValueError(f"extra={self.extra}: each row has one entry for each stage before it, of {stages} in all")

    @property
    def c(self) -> tuple[float, ...]:
        """Times of the extra stages: row sums of ``extra``."""
        return tuple(fsum(row) for row in self.extra)


def _alternating(
    b: Sequence[float], last: int, higher: Sequence[Sequence[float]], stages: int
) -> tuple[tuple[float, ...], ...]:
    """Expand ``θ(F_0 + (1-θ)(F_1 + θ(F_2 + (1-θ)(F_3 + …))))`` in powers of θ.

    F_0 to F_2 are those of cubic Hermite interpolation, from the step Σ b_i k_i and the slopes k_0 and
    k_last at its ends; F_3, … are the rows of ``higher``.
    """
    step = [*b, *[0.0] * (stages - len(b))]
    first, end = ([float(i == j) for i in range(stages)] for j in (0, last))
    rows = [step, [f - s for f, s in zip(first, step, strict=True)],
            [2 * s - f - e for s, f, e in zip(step, first, end, strict=True)], *higher]
    total = [[0.0] * (len(rows) + 1) for _ in range(stages)]  # of each stage, by power
    for i, powers in enumerate(total):
        for depth in range(len(rows) - 1, -1, -1):
            powers[0] += rows[depth][i]
            shifted = [0.0, *powers[:-1]]
            powers[:] = shifted if depth % 2 == 0 else [p - s for p, s in zip(powers, shifted, strict=True)]
    return tuple(tuple(powers[j] for powers in total) for j in range(1, len(rows) + 1))


DORMAND_PRINCE = Interpolant(
    ((1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
     (-8048581381 / 2820520608, 0.0, 131558114200 / 32700410799, -1754552775 / 470086768, 127303824393 / 49829197408,
      -282668133 / 205662961, 40617522 / 29380423),
     (8663915743 / 2820520608, 0.0, -68118460800 / 10900136933, 14199869525 / 1410260304, -318862633887 / 49829197408,
      2019193451 / 616988883, -110615467 / 29380423),
     (-12715105075 / 11282082432, 0.0, 87487479700 / 32700410799, -10690763975 / 1880347072,
      701980252875 / 199316789632, -1453857185 / 822651844, 69997945 / 29380423)),
    order=4, source="Shampine 1986, Some practical Runge-Kutta formulas, doi:10.1090/S0025-5718-1986-0815836-3")


def _tsitouras() -> tuple[tuple[float, ...], ...]:
    """Multiply out the published factors: ``scale θ^n (θ - r)(θ - s)``, or ``θ² + p θ + q`` of complex roots."""
    scale, r, p, q = -1.0530884977290216, -1.3299890189751412, -1.4364028541716351, 0.7139816917074209
    rows = [[scale * r * q, scale * (q + r * p), scale * (p + r), scale]]
    quadratics = [(0.1017, -2.1966568338249754, 1.2949852507374631),
                  (2.490627285651252793, -2.38535645472061657, 1.57803468208092486)]
    for scale, r, s in ((-16.54810288924490272, 1.21712927295533244, 0.61620406037800089),
                        (47.37952196281928122, 1.203071208372362603, 0.658047292653547382),
                        (-34.87065786149660974, 1.2, 2 / 3), (2.5, 1.0, 0.6)):
        quadratics.append((scale, -(r + s), r * s))
    rows += [[0.0, scale * q, scale * p, scale] for scale, p, q in quadratics]
    return tuple(zip(*rows, strict=True))


TSITOURAS = Interpolant(_tsitouras(), order=4, source="Tsitouras 2011, doi:10.1016/j.camwa.2011.06.002")

_DOP853_HIGHER = (
    (-8.428938276109013, 0.0, 0.0, 0.0, 0.0, 0.5667149535193777, -3.0689499459498917, 2.38466765651207,
     2.117034582445028, -0.871391583777973, 2.2404374302607883, 0.6315787787694688, -0.08899033645133331,
     18.148505520854727, -9.194632392478356, -4.436036387594894),
    (10.427508642579134, 0.0, 0.0, 0.0, 0.0, 242.28349177525817, 165.20045171727028, -374.5467547226902,
     -22.113666853125306, 7.733432668472264, -30.674084731089398, -9.332130526430229, 15.697238121770845,
     -31.139403219565178, -9.35292435884448, 35.81684148639408),
    (19.985053242002433, 0.0, 0.0, 0.0, 0.0, -387.0373087493518, -189.17813819516758, 527.8081592054236,
     -11.57390253995963, 6.8812326946963, -1.0006050966910838, 0.7777137798053443, -2.778205752353508,
     -60.19669523126412, 84.32040550667716, 11.99229113618279),
    (-25.69393346270375, 0.0, 0.0, 0.0, 0.0, -154.18974869023643, -231.5293791760455, 357.6391179106141,
     93.40532418362432, -37.45832313645163, 104.0996495089623, 29.8402934266605, -43.53345659001114,
     96.32455395918828, -39.17726167561544, -149.72683625798564))

DOP853 = Interpolant(
    _alternating(_DOP853_TABLEAU.b, 12, _DOP853_HIGHER, 16), order=7,
    extra=(
        (0.056167502283047954, 0.0, 0.0, 0.0, 0.0, 0.0, 0.25350021021662483, -0.2462390374708025, -0.12419142326381637,
         0.15329179827876568, 0.00820105229563469, 0.007567897660545699, -0.008298),
        (0.03183464816350214, 0.0, 0.0, 0.0, 0.0, 0.028300909672366776, 0.053541988307438566, -0.05492374857139099,
         0.0, 0.0, -0.00010834732869724932, 0.0003825710908356584, -0.00034046500868740456, 0.1413124436746325),
        (-0.42889630158379194, 0.0, 0.0, 0.0, 0.0, -4.697621415361164, 7.683421196062599, 4.06898981839711,
         0.3567271874552811, 0.0, 0.0, 0.0, -0.0013990241651590145, 2.9475147891527724, -9.15095847217987)),
    source="Hairer, Nørsett & Wanner 1993, Solving ordinary differential equations I, II.6")
