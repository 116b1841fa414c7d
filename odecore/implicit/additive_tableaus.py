"""Tableaus of implicit–explicit (additive) Runge–Kutta methods: a mild part explicit, a stiff part implicit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from odecore.explicit.interpolants import Interpolant
from odecore.explicit.tableaus import HEUN, Tableau
from odecore.implicit.tableaus import ImplicitTableau, theta


@dataclass(frozen=True, slots=True)
class AdditiveTableau:
    """Coefficients of a step of ``y' = f(y, t) + g(y, t)`` with f explicit and g implicit.

    ::

        Y_i = y + h Σ_{j<i} â_ij f(Y_j, t + c_j h) + h Σ_{j≤i} a_ij g(Y_j, t + c_j h)
        y⁺  = y + h Σ_i b̂_i f(Y_i, t + c_i h) + h Σ_i b_i g(Y_i, t + c_i h)

    Each part is a method of its own, with an order that the pair need not reach: the conditions that
    couple the parts come on top. Embedded weights serve both parts; they stand in the implicit one.

    Args:
        explicit: (â, b̂), for f.
        implicit: (a, b), for g; diagonally implicit, with the stage times of the explicit one.
        order: order of convergence of the pair.
        source: where it comes from.
        interpolant: dense output of order p - 1, with the same weights for the slopes of both parts and no extra
            stages; or None.

    Raises:
        ValueError: parts with different stages or stage times, or one that is not diagonally implicit.

    Source: Ascher, Ruuth & Spiteri 1997, section 2.1, doi:10.1016/S0168-9274(97)00056-1.
    """

    explicit: Tableau
    implicit: ImplicitTableau
    order: int
    source: str = ""
    interpolant: Interpolant | None = None

    def __post_init__(self) -> None:
        if self.explicit.stages != self.implicit.stages:
            raise ValueError(f"implicit has {self.implicit.stages} stages and explicit {self.explicit.stages}: give "
                             "parts of the same length, padded with zeros")
        if not np.allclose(self.explicit.c, self.implicit.c, rtol=0, atol=1e-13):
            raise ValueError(f"implicit has stage times {self.implicit.c} and explicit {self.explicit.c}: give equal "
                             "row sums, or the stages of a time-dependent problem fall apart")
        if not self.implicit.diagonal:
            raise ValueError(f"implicit={self.implicit.a}: give a diagonally implicit part, whose stages can be solved "
                             "one after the other")

    @property
    def c(self) -> tuple[float, ...]:
        """Stage times: row sums of either part."""
        return self.implicit.c

    @property
    def stages(self) -> int:
        """Stages a step."""
        return self.implicit.stages

    @property
    def ends_in_last_stage(self) -> bool:
        """Whether the result is the last stage, in both parts: globally stiffly accurate."""
        return self.implicit.stiffly_accurate and (*self.explicit.a[-1], 0.0) == self.explicit.b


def _pair(
    explicit: tuple[tuple[float, ...], ...], implicit: tuple[tuple[float, ...], ...], order: int, source: str,
    embedded: tuple[float, ...] = (), weights: tuple[float, ...] = (), interpolant: Interpolant | None = None,
) -> AdditiveTableau:
    """Build a pair whose implicit part is stiffly accurate and lends its weights to the explicit one, unless given."""
    stages = len(implicit)
    rows = tuple((*row, *[0.0] * (stages - len(row))) for row in implicit)
    return AdditiveTableau(
        Tableau(explicit, weights or rows[-1], order, source),
        ImplicitTableau(rows, rows[-1], order, embedded, order - 1 if embedded else 0, source), order, source,
        interpolant)


def _ars222() -> AdditiveTableau:
    g = 1 - math.sqrt(0.5)
    d = 1 - 1 / (2 * g)
    return _pair(((), (g,), (d, 1 - d)), ((), (0.0, g), (0.0, 1 - g, g)), 2, _ARS, weights=(d, 1 - d, 0.0))


def _ars343() -> AdditiveTableau:
    """The diagonal is the middle root of 6γ³ - 18γ² + 9γ - 1; a₄₂ = a₄₃ is their choice for third-order damping."""
    g = sorted(np.roots([6.0, -18.0, 9.0, -1.0]).real.tolist())[1]
    first, second = -3 / 2 * g**2 + 4 * g - 1 / 4, 3 / 2 * g**2 - 5 * g + 5 / 4
    free = 0.5529291479
    shift = (1 - 9 / 2 * g + 3 / 2 * g**2 + 11 / 4 - 21 / 2 * g + 15 / 4 * g**2) * free
    third = (shift - 7 / 2 + 13 * g - 9 / 2 * g**2, -shift + 4 - 25 / 2 * g + 9 / 2 * g**2)
    return _pair(((), (g,), third, (1 - 2 * free, free, free)),
                 ((), (0.0, g), (0.0, (1 - g) / 2, g), (0.0, first, second, g)), 3, _ARS)


_ARS = "Ascher, Ruuth & Spiteri 1997, doi:10.1016/S0168-9274(97)00056-1"
_KENNEDY_CARPENTER = "Kennedy & Carpenter 2003, doi:10.1016/S0168-9274(02)00138-1"

IMEX_EULER = _pair(((), (1.0,)), ((), (0.0, 1.0)), 1, _ARS, weights=(1.0, 0.0))
HEUN_CRANK_NICOLSON = AdditiveTableau(HEUN, theta(0.5), 2, "Heun 1900 beside Crank & Nicolson 1947")
ARS222 = _ars222()
ARS343 = _ars343()
ARS443 = _pair(
    ((), (1 / 2,), (11 / 18, 1 / 18), (5 / 6, -5 / 6, 1 / 2), (1 / 4, 7 / 4, 3 / 4, -7 / 4)),
    ((), (0.0, 1 / 2), (0.0, 1 / 6, 1 / 2), (0.0, -1 / 2, 1 / 2, 1 / 2), (0.0, 3 / 2, -3 / 2, 1 / 2, 1 / 2)),
    3, _ARS, weights=(1 / 4, 7 / 4, 3 / 4, -7 / 4, 0.0))
KENCARP3 = _pair(
    ((),
     (1767732205903 / 2027836641118,),
     (5535828885825 / 10492691773637, 788022342437 / 10882634858940),
     (6485989280629 / 16251701735622, -4246266847089 / 9704473918619, 10755448449292 / 10357097424841)),
    ((),
     (1767732205903 / 4055673282236,) * 2,
     (2746238789719 / 10658868560708, -640167445237 / 6845629431997, 1767732205903 / 4055673282236),
     (1471266399579 / 7840856788654, -4482444167858 / 7529755066697, 11266239266428 / 11593286722821,
      1767732205903 / 4055673282236)),
    3, f"ARK3(2)4L[2]SA: {_KENNEDY_CARPENTER}",
    embedded=(2756255671327 / 12835298489170, -10771552573575 / 22201958757719, 9247589265047 / 10645013368117,
              2193209047091 / 5459859503100),
    interpolant=Interpolant(
        ((4655552711362 / 22874653954995, -18682724506714 / 9892148508045, 34259539580243 / 13192909600954,
          584795268549 / 6622622206610),
         (-215264564351 / 13552729205753, 17870216137069 / 13817060693119, -28141676662227 / 17317692491321,
          2508943948391 / 7218656332882)), 2, source=_KENNEDY_CARPENTER))
KENCARP4 = _pair(
    ((),
     (1 / 2,),
     (13861 / 62500, 6889 / 62500),
     (-116923316275 / 2393684061468, -2731218467317 / 15368042101831, 9408046702089 / 11113171139209),
     (-451086348788 / 2902428689909, -2682348792572 / 7519795681897, 12662868775082 / 11960479115383,
      3355817975965 / 11060851509271),
     (647845179188 / 3216320057751, 73281519250 / 8382639484533, 552539513391 / 3454668386233,
      3354512671639 / 8306763924573, 4040 / 17871)),
    ((),
     (1 / 4, 1 / 4),
     (8611 / 62500, -1743 / 31250, 1 / 4),
     (5012029 / 34652500, -654441 / 2922500, 174375 / 388108, 1 / 4),
     (15267082809 / 155376265600, -71443401 / 120774400, 730878875 / 902184768, 2285395 / 8070912, 1 / 4),
     (82889 / 524892, 0.0, 15625 / 83664, 69875 / 102672, -2260 / 8211, 1 / 4)),
    4, f"ARK4(3)6L[2]SA: {_KENNEDY_CARPENTER}",
    embedded=(4586570599 / 29645900160, 0.0, 178811875 / 945068544, 814220225 / 1159782912, -3700637 / 11593932,
              61727 / 225920),
    interpolant=Interpolant(
        ((6943876665148 / 7220017795957, 0.0, 7640104374378 / 9702883013639, -20649996744609 / 7521556579894,
          8854892464581 / 2390941311638, -11397109935349 / 6675773540249),
         (-54480133 / 30881146, 0.0, -11436875 / 14766696, 174696575 / 18121608, -12120380 / 966161, 3843 / 706),
         (6818779379841 / 7100303317025, 0.0, 2173542590792 / 12501825683035, -31592104683404 / 5083833661969,
          61146701046299 / 7138195549469, -17219254887155 / 4939391667607)), 3, source=_KENNEDY_CARPENTER))
KENCARP5 = _pair(
    ((),
     (41 / 100,),
     (367902744464 / 2072280473677, 677623207551 / 8224143866563),
     (1268023523408 / 10340822734521, 0.0, 1029933939417 / 13636558850479),
     (14463281900351 / 6315353703477, 0.0, 66114435211212 / 5879490589093, -54053170152839 / 4284798021562),
     (14090043504691 / 34967701212078, 0.0, 15191511035443 / 11219624916014, -18461159152457 / 12425892160975,
      -281667163811 / 9011619295870),
     (19230459214898 / 13134317526959, 0.0, 21275331358303 / 2942455364971, -38145345988419 / 4862620318723,
      -1 / 8, -1 / 8),
     (-19977161125411 / 11928030595625, 0.0, -40795976796054 / 6384907823539, 177454434618887 / 12078138498510,
      782672205425 / 8267701900261, -69563011059811 / 9646580694205, 7356628210526 / 4942186776405)),
    ((),
     (41 / 200, 41 / 200),
     (41 / 400, -567603406766 / 11931857230679, 41 / 200),
     (683785636431 / 9252920307686, 0.0, -110385047103 / 1367015193373, 41 / 200),
     (3016520224154 / 10081342136671, 0.0, 30586259806659 / 12414158314087, -22760509404356 / 11113319521817,
      41 / 200),
     (218866479029 / 1489978393911, 0.0, 638256894668 / 5436446318841, -1179710474555 / 5321154724896,
      -60928119172 / 8023461067671, 41 / 200),
     (1020004230633 / 5715676835656, 0.0, 25762820946817 / 25263940353407, -2161375909145 / 9755907335909,
      -211217309593 / 5846859502534, -4269925059573 / 7827059040749, 41 / 200),
     (-872700587467 / 9133579230613, 0.0, 0.0, 22348218063261 / 9555858737531, -1143369518992 / 8141816002931,
      -39379526789629 / 19018526304540, 32727382324388 / 42900044865799, 41 / 200)),
    5, f"ARK5(4)8L[2]SA: {_KENNEDY_CARPENTER}",
    embedded=(-975461918565 / 9796059967033, 0.0, 0.0, 78070527104295 / 32432590147079,
              -548382580838 / 3424219808633, -33438840321285 / 15594753105479, 3629800801594 / 4656183773603,
              4035322873751 / 18575991585200))
