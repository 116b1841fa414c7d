"""One-step methods for stochastic differential equations, as pure functions of their noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from odecore.gradients.adjoint import PureStep, State
from odecore.phi import phi
from odecore.stochastic.brownian import BrownianIncrement

Coefficient = Callable[[Tensor, Tensor], Tensor]
"""``(y, t) -> value``: states of shape (samples, …) and one time a sample."""

NOISES = ("diagonal", "scalar", "additive", "general")
INTERPRETATIONS = ("ito", "stratonovich")


@dataclass(frozen=True, slots=True)
class SDE:
    """A stochastic differential equation ``dy = f(y, t) dt + g(y, t) dW``.

    Args:
        drift: f, of the shape of y.
        diffusion: g. For ``diagonal`` noise of the shape of y, its element i reading y_i alone,
            with as many independent Brownian motions. For ``scalar`` noise likewise, but one motion
            a sample, whose increments broadcast over y. For ``additive`` noise either of the two
            with a g that does not read y. For ``general`` noise of shape (samples, d, m), with y of
            shape (samples, d) and increments of shape (samples, m).
        noise: which of these.
        interpretation: of the stochastic integral, ``ito`` or ``stratonovich``.

    Raises:
        ValueError: an unknown noise or interpretation.
    """

    drift: Coefficient
    diffusion: Coefficient
    noise: str = "diagonal"
    interpretation: str = "ito"

    def __post_init__(self) -> None:
        if self.noise not in NOISES:
            raise ValueError(f"noise={self.noise!r}: choose one of {', '.join(NOISES)}")
        if self.interpretation not in INTERPRETATIONS:
            raise ValueError(f"interpretation={self.interpretation!r}: choose one of {', '.join(INTERPRETATIONS)}")

    def spread(self, diffusion: Tensor, w: Tensor) -> Tensor:
        """Multiply g with an increment of W."""
        return torch.einsum("bij,bj->bi", diffusion, w) if self.noise == "general" else diffusion * w


Method = Callable[[SDE, Tensor, Tensor, Tensor, BrownianIncrement], Tensor]
"""``(sde, t0, t1, y, increment) -> y at t1``, with times of shape (samples,)."""


def euler_maruyama(sde: SDE, t0: Tensor, t1: Tensor, y: Tensor, increment: BrownianIncrement) -> Tensor:
    """Step by ``y + f h + g W``: strong order 1/2, and 1 for additive noise; Itô.

    Raises:
        ValueError: a Stratonovich equation whose noise is not additive.

    Source: Kloeden & Platen 1992, section 10.2, doi:10.1007/978-3-662-12616-5.
    """
    _require(sde, "ito", "euler_maruyama")
    return y + _length(t0, t1, y) * sde.drift(y, t0) + sde.spread(sde.diffusion(y, t0), increment.w)


def milstein(sde: SDE, t0: Tensor, t1: Tensor, y: Tensor, increment: BrownianIncrement) -> Tensor:
    """Step by ``y + f h + g W + ½ g'g (W² - h)``: strong order 1.

    In the Stratonovich sense the last bracket is ``W²``. The product ``g'g`` comes from forward-mode
    differentiation.

    Raises:
        ValueError: general noise, whose iterated integrals no such formula gives.

    Source: Kloeden & Platen 1992, section 10.3, doi:10.1007/978-3-662-12616-5.
    """
    if sde.noise == "general":
        raise ValueError("noise='general': Milstein's method needs diagonal, scalar or additive noise; use "
                         "euler_maruyama or heun")
    h = _length(t0, t1, y)
    g, slope = _along_itself(sde, y, t0)
    square = increment.w**2 - h if sde.interpretation == "ito" else increment.w**2
    return y + h * sde.drift(y, t0) + g * increment.w + 0.5 * slope * square


def heun(sde: SDE, t0: Tensor, t1: Tensor, y: Tensor, increment: BrownianIncrement) -> Tensor:
    """Step by Heun's predictor and corrector: Stratonovich.

    With ``ŷ = y + f(y) h + g(y) W`` the result is ``y + ½ (f(y) + f(ŷ)) h + ½ (g(y) + g(ŷ)) W``:
    strong order 1 for diagonal, scalar and additive noise, 1/2 for general.

    Raises:
        ValueError: an Itô equation whose noise is not additive.

    Source: Rümelin 1982, doi:10.1137/0719041.
    """
    _require(sde, "stratonovich", "heun")
    h = _length(t0, t1, y)
    f0, g0 = sde.drift(y, t0), sde.diffusion(y, t0)
    predicted = y + h * f0 + sde.spread(g0, increment.w)
    f1, g1 = sde.drift(predicted, t1), sde.diffusion(predicted, t1)
    return y + 0.5 * h * (f0 + f1) + sde.spread(0.5 * (g0 + g1), increment.w)


def srk_additive(sde: SDE, t0: Tensor, t1: Tensor, y: Tensor, increment: BrownianIncrement) -> Tensor:
    """Step by Rößler's SRA1: strong order 3/2 for additive noise.

    With ``J = ∫_0^h W ds = h (H + W/2)``, H the space-time Lévy area, and g at the two ends::

        Y = y + ¾ h f(y, t0) + 3/2 g(t1) J/h
        y + h (⅓ f(y, t0) + ⅔ f(Y, t0 + ¾ h)) + g(t1) (W - J/h) + g(t0) J/h

    On linear drifts it has order 2.

    Raises:
        ValueError: noise that is not additive.

    Cost: two evaluations of f and two of g.

    Source: Rößler 2010, Runge–Kutta methods for the strong approximation of solutions of stochastic
        differential equations, doi:10.1137/09076636X, scheme SRA1.
    """
    if sde.noise != "additive":
        raise ValueError(f"noise={sde.noise!r}: srk_additive needs additive noise; use milstein or heun")
    h = _length(t0, t1, y)
    mean = increment.levy + 0.5 * increment.w
    f0, g0, g1 = sde.drift(y, t0), sde.diffusion(y, t0), sde.diffusion(y, t1)
    stage = y + 0.75 * h * f0 + 1.5 * g1 * mean
    f1 = sde.drift(stage, torch.lerp(t0, t1, 0.75))
    return y + h * (f0 + 2.0 * f1) / 3.0 + g1 * (increment.w - mean) + g0 * mean


def exponential_euler(linear: float | Tensor) -> Method:
    """Make the method that integrates ``dy = (L y + N) dt + g dW`` with an exact linear part; Itô.

    The SDE's drift is then N alone::

        e^{Lh} y + h φ_1(Lh) N + φ_1(Lh) g W + (6 φ_1(Lh) - 12 φ_2(Lh)) g H

    where the last two terms are the mean of ``∫ e^{L(h-s)} dW g`` given the increment W and the
    space-time Lévy area H: strong order 1/2, and 1 for additive noise, whatever the size of L.

    Args:
        linear: L, a number or a tensor that broadcasts over y: a diagonal or a Fourier symbol.

    Source: Lord, Powell & Shardlow 2014, section 10.8, doi:10.1017/CBO9781139017329, for the
        exponential Euler method; the weights of the noise are the projection stated above.
    """
    def step(sde: SDE, t0: Tensor, t1: Tensor, y: Tensor, increment: BrownianIncrement) -> Tensor:
        _require(sde, "ito", "exponential_euler")
        h = _length(t0, t1, y)
        z = linear * h
        phi_1, phi_2 = phi(1, z), phi(2, z)
        g = sde.diffusion(y, t0)
        noise = phi_1 * sde.spread(g, increment.w) + (6.0 * phi_1 - 12.0 * phi_2) * sde.spread(g, increment.levy)
        return z.exp() * y + h * phi_1 * sde.drift(y, t0) + noise

    return step


def converted(sde: SDE, interpretation: str) -> SDE:
    """Write the same process in the other sense: ``f_ito = f_stratonovich + ½ g'g``.

    Args:
        sde: of diagonal, scalar or additive noise.
        interpretation: the sense wanted.

    Raises:
        ValueError: general noise, or an unknown interpretation.
    """
    other = replace(sde, interpretation=interpretation)
    if sde.noise == "general":
        raise ValueError("noise='general': only diagonal, scalar and additive noise can be converted; write the drift "
                         "in the sense that the method needs")
    if interpretation == sde.interpretation or sde.noise == "additive":
        return other
    sign = 0.5 if interpretation == "ito" else -0.5
    return replace(other, drift=lambda y, t: sde.drift(y, t) + sign * _along_itself(sde, y, t)[1])


def sde_steps(
    method: Method,
    sde: SDE,
    times: Sequence[float],
    noise: Callable[[float, float], BrownianIncrement],
) -> list[PureStep]:
    """Make a grid's steps as pure functions of a one-tensor state, for :func:`~odecore.gradients.adjoint.discrete`.

    Args:
        method: one of this module's.
        sde: the equation.
        times: the grid, in either direction.
        noise: increments from one time to another, the same whenever it is asked: the method
            ``increment`` of a :class:`~odecore.stochastic.brownian.BrownianMotion`.

    Raises:
        ValueError: fewer than two times.
    """
    if len(times) < 2:
        raise ValueError(f"times has {len(times)} entries: give two or more")

    def step(begin: float, end: float, state: State) -> State:
        (y,) = state
        t0, t1 = (torch.full((len(y),), t, dtype=torch.float64, device=y.device) for t in (begin, end))
        w, levy = (x.to(y.device, y.dtype) for x in noise(begin, end))
        return (method(sde, t0, t1, y, BrownianIncrement(w, levy)),)

    return [partial(step, float(begin), float(end)) for begin, end in zip(times[:-1], times[1:], strict=True)]


def integrate_sde(
    method: Method,
    sde: SDE,
    y0: Float[Tensor, "samples ..."],
    times: Sequence[float],
    noise: Callable[[float, float], BrownianIncrement],
) -> Float[Tensor, "nodes samples ..."]:
    """Integrate on a grid; autograd follows. :func:`sde_steps` has the same steps for bounded memory.

    Args:
        method: one of this module's.
        sde: the equation.
        y0: initial states of shape (samples, …).
        times: the grid, in either direction.
        noise: as in :func:`sde_steps`.

    Returns:
        The states at all times, the first being y0.

    Raises:
        ValueError: fewer than two times, or an equation that the method cannot solve.

    Cost: one step of the method for each interval.
    """
    states = [y0]
    for step in sde_steps(method, sde, times, noise):
        states.append(step((states[-1],))[0])
    return torch.stack(states)


def _along_itself(sde: SDE, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The diffusion g and its derivative in the direction g, for one motion an element or a sample."""
    if sde.noise == "additive":
        g = sde.diffusion(y, t)
        return g, torch.zeros_like(g)
    direction = sde.diffusion(y, t)
    if direction.shape != y.shape:
        raise ValueError(f"diffusion returned shape {tuple(direction.shape)} for a state of shape {tuple(y.shape)}: "
                         f"with {sde.noise} noise they must be the same")
    g, slope = torch.func.jvp(lambda point: sde.diffusion(point, t), (y,), (direction,))[:2]
    return g, slope


def _length(t0: Tensor, t1: Tensor, y: Tensor) -> Tensor:
    return (t1 - t0).to(y.dtype).reshape(-1, *[1] * (y.ndim - 1))


def _require(sde: SDE, interpretation: str, method: str) -> None:
    if sde.interpretation != interpretation and sde.noise != "additive":
        raise ValueError(f"interpretation={sde.interpretation!r}: {method} solves {interpretation} equations; write it "
                         f"as one with converted(sde, {interpretation!r})")
