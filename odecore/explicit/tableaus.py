"""Butcher tableaux of Runge–Kutta methods as data that checks itself, and the explicit ones."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ButcherTableau:
    """Coefficients of ``k_i = f(t + c_i h, y + h Σ_j a_ij k_j)``, ``y⁺ = y + h Σ_i b_i k_i``.

    Args:
        a: one row a stage.
        b: weights of the result.
        order: order of convergence.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int

    @property
    def c(self) -> tuple[float, ...]:
        """Stage times: row sums of a."""
        return tuple(math.fsum(row) for row in self.a)

    @property
    def stages(self) -> int:
        """Stages a step."""
        return len(self.b)


def check_weights(name: str, weights: tuple[float, ...], stages: int) -> None:
    """Check that there is one weight a stage and that all sum to one.

    Raises:
        ValueError: they do not.
    """
    if len(weights) != stages or not math.isclose(math.fsum(weights), 1.0, rel_tol=0, abs_tol=1e-13):
        raise ValueError(f"{name}={weights}: give {stages} weights that sum to one")


@dataclass(frozen=True, slots=True)
class Tableau(ButcherTableau):
    """A tableau of an explicit method.

    Args:
        a: strictly lower triangle; row i has i entries.
        b: weights of the result.
        order: order of convergence.
        source: where it comes from.

    Raises:
        ValueError: sizes that do not fit, or weights that do not sum to one.
    """

    source: str = ""

    def __post_init__(self) -> None:
        if len(self.a) != len(self.b) or any(len(row) != i for i, row in enumerate(self.a)):
            raise ValueError(f"a={self.a}: give {len(self.b)} rows, row i with i entries")
        check_weights("b", self.b, self.stages)


EULER = Tableau(a=((),), b=(1.0,), order=1, source="Euler 1768")
MIDPOINT = Tableau(a=((), (0.5,)), b=(0.0, 1.0), order=2, source="Runge 1895")
HEUN = Tableau(a=((), (1.0,)), b=(0.5, 0.5), order=2, source="Heun 1900")
RALSTON = Tableau(a=((), (2 / 3,)), b=(0.25, 0.75), order=2, source="Ralston 1962")
KUTTA3 = Tableau(a=((), (0.5,), (-1.0, 2.0)), b=(1 / 6, 2 / 3, 1 / 6), order=3, source="Kutta 1901")
SSP3 = Tableau(a=((), (1.0,), (0.25, 0.25)), b=(1 / 6, 1 / 6, 2 / 3), order=3,
               source="Shu & Osher 1988, doi:10.1016/0021-9991(88)90177-5")
RK4 = Tableau(a=((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), b=(1 / 6, 1 / 3, 1 / 3, 1 / 6), order=4, source="Kutta 1901")
BOGACKI_SHAMPINE = Tableau(a=((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)), b=(2 / 9, 1 / 3, 4 / 9, 0.0), order=3,
                           source="Bogacki & Shampine 1989, doi:10.1016/0893-9659(89)90079-7")
DORMAND_PRINCE = Tableau(
    a=((), (1 / 5,), (3 / 40, 9 / 40), (44 / 45, -56 / 15, 32 / 9),
       (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
       (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
       (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)),
    b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0), order=5,
    source="Dormand & Prince 1980, doi:10.1016/0771-050X(80)90013-3")

_TSITOURAS_WEIGHTS = (
    0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774)
TSITOURAS = Tableau(
    a=((),
       (0.161,),
       (-0.008480655492356989, 0.335480655492357),
       (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
       (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
       (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
       _TSITOURAS_WEIGHTS),
    b=(*_TSITOURAS_WEIGHTS, 0.0), order=5, source="Tsitouras 2011, doi:10.1016/j.camwa.2011.06.002")

_DOP853_WEIGHTS = (
    0.054293734116568765, 0.0, 0.0, 0.0, 0.0, 4.450312892752409, 1.8915178993145003, -5.801203960010585,
    0.3111643669578199, -0.1521609496625161, 0.20136540080403034, 0.04471061572777259)
DOP853 = Tableau(
    a=((),
       (0.05260015195876773,),
       (0.0197250569845379, 0.0591751709536137),
       (0.02958758547680685, 0.0, 0.08876275643042054),
       (0.2413651341592667, 0.0, -0.8845494793282861, 0.924834003261792),
       (0.037037037037037035, 0.0, 0.0, 0.17082860872947386, 0.12546768756682242),
       (0.037109375, 0.0, 0.0, 0.17025221101954405, 0.06021653898045596, -0.017578125),
       (0.03709200011850479, 0.0, 0.0, 0.17038392571223998, 0.10726203044637328, -0.015319437748624402,
        0.008273789163814023),
       (0.6241109587160757, 0.0, 0.0, -3.3608926294469414, -0.868219346841726, 27.59209969944671,
        20.154067550477894, -43.48988418106996),
       (0.47766253643826434, 0.0, 0.0, -2.4881146199716677, -0.590290826836843, 21.230051448181193,
        15.279233632882423, -33.28821096898486, -0.020331201708508627),
       (-0.9371424300859873, 0.0, 0.0, 5.186372428844064, 1.0914373489967295, -8.149787010746927,
        -18.52006565999696, 22.739487099350505, 2.4936055526796523, -3.0467644718982196),
       (2.273310147516538, 0.0, 0.0, -10.53449546673725, -2.0008720582248625, -17.9589318631188, 27.94888452941996,
        -2.8589982771350235, -8.87285693353063, 12.360567175794303, 0.6433927460157636),
       _DOP853_WEIGHTS),
    b=(*_DOP853_WEIGHTS, 0.0), order=8,
    source="Dormand & Prince, in Hairer, Nørsett & Wanner 1993, Solving ordinary differential equations I, II.5")
