"""Modified equations: what a numerical scheme solves exactly, and what it learns when it is trained through."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from odecore.explicit.tableaus import DOP853, DORMAND_PRINCE, EULER, HEUN, KUTTA3, RK4, ButcherTableau
from odecore.plan import Plan
from odecore.registers import Registers, combine
from odecore.stepper import Field, column

Scheme = Callable[[Field, Tensor, Tensor, Tensor], Tensor]
"""``(field, y, t, h) -> y(t + h)``, approximately; states (samples, …), times and steps of shape (samples,)."""

StepField = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(y, t, h) -> slope``: a field that depends on the step with which it is to be used."""

_FLOWS = (EULER, HEUN, KUTTA3, RK4, DORMAND_PRINCE, DOP853)


def at_step(field: StepField, h: float | Tensor) -> Field:
    """The field for one step h, or one a sample, which any solver integrates."""
    return lambda y, t: field(y, t, torch.as_tensor(h, dtype=torch.float64).to(t.device).expand(t.shape))


def runge_kutta(tableau: ButcherTableau, *, passes: int | None = None) -> Scheme:
    """One step of a Runge–Kutta method.

    Args:
        tableau: explicit or implicit.
        passes: fixed-point iterations of an implicit method, which start from the slope at the beginning; each
            takes the iteration's error down by a power of h. An explicit method needs none.

    Raises:
        ValueError: an implicit method without a number of passes.

    Cost: ``stages`` evaluations, times ``passes`` + 1 for an implicit method.
    """
    explicit = not any(any(row[i:]) for i, row in enumerate(tableau.a))
    if not explicit and (passes is None or passes < 1):
        raise ValueError(f"passes={passes}: an implicit method is iterated; give at least 1")

    def step(field: Field, y: Tensor, t: Tensor, h: Tensor) -> Tensor:
        times = [t + c * h for c in tableau.c]
        slopes: list[Tensor] = [] if explicit else [field(y, t)] * tableau.stages
        for _ in range(1 if explicit else passes or 1):
            found: list[Tensor] = []
            for row, time in zip(tableau.a, times, strict=True):
                known = found if explicit else slopes
                point = y + column(h, y) * combine(row, known) if any(row) else y
                found.append(field(point, time))
            slopes = found
        return y + column(h, y) * combine(tableau.b, slopes)

    return step


def exact_flow(order: int) -> Scheme:
    """The solution itself but for ``O(h^{order + 1})``: a Runge–Kutta step of at least that order.

    Args:
        order: between 1 and 8.

    Raises:
        ValueError: another order.

    Cost: 1, 2, 3, 4, 7 or 12 evaluations for orders 1, 2, 3, 4, 5 and up to 8.
    """
    if isinstance(order, bool) or order not in range(1, DOP853.order + 1):
        raise ValueError(f"order={order!r}: choose a whole number between 1 and {DOP853.order}")
    return runge_kutta(next(tableau for tableau in _FLOWS if tableau.order >= order))


def substeps(scheme: Scheme, count: int) -> Scheme:
    """Several equal steps of a scheme as one.

    Raises:
        ValueError: fewer than one.
    """
    if count < 1:
        raise ValueError(f"count={count}: give at least 1")

    def step(field: Field, y: Tensor, t: Tensor, h: Tensor) -> Tensor:
        for k in range(count):
            y = scheme(field, y, t + h * k / count, h / count)
        return y

    return step


def of_plan(plan: Plan) -> Scheme:
    """A whole plan as one step, its grid stretched to the step's length.

    The plan is of the problem y' = f, as ``odecore.schemes`` compile it with the variable ``ode()``: its
    evaluation times become ``t + h (t_i - t_0)/(t_N - t_0)`` and its slopes are scaled alike.

    Raises:
        ValueError: a plan that adds noise, or of a problem with a linear part: there the exact solution for
            a constant slope is not ``y + (t_N - t_0) f``.

    Cost: ``plan.nfe`` evaluations.
    """
    if any(row.noisy for row in plan.rows):
        raise ValueError("the plan adds noise: modified equations are those of deterministic schemes")
    first, last = float(plan.t_start), float(plan.rows[-1].t_next)
    if plan.exact is None or plan.exact[0] != 1.0 or not math.isclose(float(plan.exact[1]), last - first):
        raise ValueError(f"plan.exact={plan.exact}: give a plan of y' = f, from odecore.schemes with ode()")

    def step(field: Field, y: Tensor, t: Tensor, h: Tensor) -> Tensor:
        registers = Registers(y, plan.depth, reuse=False)
        for row in plan.rows:
            slope = field(registers.point, t + h * ((float(row.t) - first) / (last - first)))
            registers.advance(row, column(h / (last - first), y) * slope)
        return registers.anchor

    return step


def matching_field(scheme: Scheme, target: Scheme, field: Field, passes: int) -> StepField:
    """Find the field g with which one scheme does what another does with f: ``scheme_{h,g} = target_{h,f}``.

    ``g ← g + (target_{h,f} - scheme_{h,g})/h``, from ``g = f``: a change δ of the field changes a consistent
    scheme's step by ``h δ + O(h²)``, so each pass takes the defect down by a power of h. No derivative of f
    is formed: the result is the formal series ``f + h g_1 + h² g_2 + …`` of the theory up to a power of h.

    Args:
        scheme: what is to be run, consistent.
        target: what it is to do.
        field: f.
        passes: how many, at least 0.

    Returns:
        g, of state, time and step; differentiable where f is. The step must not be zero.

    Raises:
        ValueError: a negative number of passes.

    Cost: with s evaluations a step of the scheme, ``(s + 1)^passes`` fields f and about as many targets for
        one value. Rounding errors are divided by h.

    Source: Zhu, Jin, Zhu & Tang 2022, On numerical integration in neural ordinary differential equations,
        arXiv:2206.07335; Hairer, Lubich & Wanner 2006, Geometric numerical integration, chapter IX.
    """
    if isinstance(passes, bool) or not isinstance(passes, int) or passes < 0:
        raise ValueError(f"passes={passes!r}: give a whole number, at least 0")
    if passes == 0:
        return lambda y, t, h: field(y, t)
    before = matching_field(scheme, target, field, passes - 1)

    def corrected(y: Tensor, t: Tensor, h: Tensor) -> Tensor:
        defect = target(field, y, t, h) - scheme(lambda z, s: before(z, s, h), y, t, h)
        return before(y, t, h) + defect / column(h, y)

    return corrected


def inverse_modified(scheme: Scheme, field: Field, order: int, *, scheme_order: int = 1) -> StepField:
    """The inverse modified equation: the field with which a scheme follows the true solutions of ``y' = f``.

    A network trained through the scheme on exact data converges to it, not to f. For Euler's method
    ``f_h = f + h/2 f'f + h²/6 (f''(f,f) + f'f'f) + …``. Truncated at ``h^order`` it leaves a defect of
    ``h^{order + 2}`` in a step.

    Args:
        scheme: through which a network is trained.
        field: f.
        order: the largest power of h, between 0 and 7.
        scheme_order: order of convergence of the scheme, if it is known to be more than 1: saves passes.

    Raises:
        ValueError: an order out of range.

    Cost, Source: as :func:`matching_field`, with ``order - scheme_order + 1`` passes.
    """
    passes = _passes(order, scheme_order)
    return matching_field(scheme, exact_flow(order + 1), field, passes)


def modified(scheme: Scheme, field: Field, order: int, *, scheme_order: int = 1) -> StepField:
    """The modified equation: the field whose true solution is what the scheme computes for ``y' = f``.

    For Euler's method ``f - h/2 f'f + …``. Arguments, errors and cost as in :func:`inverse_modified`.
    """
    passes = _passes(order, scheme_order)
    return matching_field(exact_flow(order + 1), scheme, field, passes)


def principal_error(scheme: Scheme, field: Field, scheme_order: int) -> StepField:
    """The leading term of a scheme's modified equation: ``(Φ_s - φ_s)/s^{p + 1} = f_p + O(s)`` of a short step s.

    The scheme with steps h then follows ``f + h^p f_p + O(h^{p + 1})``, and the field with which it would follow
    f is ``f - h^p f_p``. Here s only sets where f_p is measured; it may be far shorter than h, so that nothing is
    evaluated outside of the interval.

    Cost: a step of the scheme and one of order p + 1 for each value.
    """
    flow = exact_flow(scheme_order + 1)
    return lambda y, t, s: (scheme(field, y, t, s) - flow(field, y, t, s)) / column(s ** (scheme_order + 1), y)


def _passes(order: int, scheme_order: int) -> int:
    if isinstance(order, bool) or order not in range(DOP853.order):
        raise ValueError(f"order={order!r}: choose a whole number between 0 and {DOP853.order - 1}")
    if scheme_order < 1:
        raise ValueError(f"scheme_order={scheme_order}: give at least 1")
    return max(0, order - scheme_order + 1)
