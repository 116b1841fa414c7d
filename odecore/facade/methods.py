"""Names of methods: those of torchdiffeq with its meaning, and our own."""

from __future__ import annotations

from types import MappingProxyType

from odecore.explicit.adams import adams_bashforth, adams_bashforth_moulton
from odecore.explicit.embedded import BOGACKI_SHAMPINE, DOP853, DORMAND_PRINCE, HEUN_EULER, TSITOURAS
from odecore.explicit.pairs import FEHLBERG2, HEUN3, PRINCE_DORMAND8, THREE_EIGHTHS, without_error
from odecore.explicit.tableaus import EULER, HEUN, KUTTA3, MIDPOINT, RALSTON, RK4, SSP3
from odecore.exponential import tableaus as exponential
from odecore.exponential.adams import exponential_adams_bashforth_moulton
from odecore.exponential.runge_kutta import ExponentialRungeKutta
from odecore.implicit.additive import ARS222, ARS343, ARS443, IMEX_EULER, KENCARP3, KENCARP4, KENCARP5
from odecore.implicit.runge_kutta import (
    BACKWARD_EULER,
    CRANK_NICOLSON,
    GAUSS2,
    GAUSS4,
    GAUSS6,
    KVAERNO3,
    KVAERNO4,
    KVAERNO5,
    RADAU3,
    RADAU5,
    SDIRK2,
    TR_BDF2,
)
from odecore.stepper import Stepper

SCIPY = "scipy_solver"
"""The name that stands for SciPy's methods, which are no steppers."""

ADAPTIVE: MappingProxyType[str, Stepper] = MappingProxyType({
    "dopri8": PRINCE_DORMAND8, "dopri5": DORMAND_PRINCE, "bosh3": BOGACKI_SHAMPINE, "fehlberg2": FEHLBERG2,
    "adaptive_heun": HEUN_EULER, "tsit5": TSITOURAS, "dop853": DOP853, "kvaerno3": KVAERNO3, "kvaerno4": KVAERNO4,
    "kvaerno5": KVAERNO5, "radau5": RADAU5,
})
"""Methods that choose their steps by their error."""

FIXED: MappingProxyType[str, Stepper] = MappingProxyType({
    "euler": without_error(EULER), "midpoint": without_error(MIDPOINT), "heun2": without_error(HEUN),
    "heun3": without_error(HEUN3), "rk4": without_error(THREE_EIGHTHS),
    "explicit_adams": adams_bashforth(4), "implicit_adams": adams_bashforth_moulton(4),
    "fixed_adams": adams_bashforth_moulton(4),
    "classic_rk4": without_error(RK4), "ralston": without_error(RALSTON), "kutta3": without_error(KUTTA3),
    "ssp3": without_error(SSP3), "implicit_euler": BACKWARD_EULER, "implicit_midpoint": GAUSS2,
    "trapezoid": CRANK_NICOLSON, "radauIIA3": RADAU3, "radauIIA5": RADAU5, "gl4": GAUSS4, "gl6": GAUSS6,
    "sdirk2": SDIRK2, "trbdf2": TR_BDF2,
})
"""Methods that take the steps of a grid."""

IN_PARTS: MappingProxyType[str, Stepper] = MappingProxyType({
    "imex_euler": IMEX_EULER, "ars222": ARS222, "ars343": ARS343, "ars443": ARS443, "kencarp3": KENCARP3,
    "kencarp4": KENCARP4, "kencarp5": KENCARP5, "etdrk1": ExponentialRungeKutta(exponential.ETD_RK1),
    "etdrk2": ExponentialRungeKutta(exponential.ETD_RK2), "etdrk3": ExponentialRungeKutta(exponential.ETD_RK3),
    "etdrk4": ExponentialRungeKutta(exponential.ETD_RK4), "krogstad": ExponentialRungeKutta(exponential.KROGSTAD),
    "hochbruck_ostermann": ExponentialRungeKutta(exponential.HOCHBRUCK_OSTERMANN),
    "lawson4": ExponentialRungeKutta(exponential.LAWSON4), "exponential_adams": exponential_adams_bashforth_moulton(4),
})
"""Methods that treat the parts of a problem each in its way, implicit–explicit and exponential ones.

They take a :class:`~odecore.problem.Split` or :class:`~odecore.problem.Semilinear` problem, which no function
of (t, y) is: ``odecore.solve(stepper("kencarp4"), Split(f, g), …)`` and ``odecore.integrate`` are for them, not
:func:`~odecore.facade.odeint.odeint`.
"""


def method_names() -> tuple[str, ...]:
    """All names that :func:`odecore.facade.odeint.odeint` knows."""
    return (*ADAPTIVE, *FIXED, SCIPY)


def stepper(name: str) -> Stepper:
    """Look up a method.

    Raises:
        ValueError: a name that is not among :data:`ADAPTIVE`, :data:`FIXED` and :data:`IN_PARTS`.
    """
    for names in (ADAPTIVE, FIXED, IN_PARTS):
        if name in names:
            return names[name]
    raise ValueError(f"method={name!r}: choose one of {', '.join(method_names())}")
