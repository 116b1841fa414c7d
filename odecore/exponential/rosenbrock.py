"""Exponential Rosenbrock methods: linearise at each step, and solve the linear part through Krylov subspaces."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from odecore.exponential.krylov_phi import krylov_phi
from odecore.exponential.phi_sums import PhiSum, varphi
from odecore.stepper import Carry, Field, Step, column, send


@dataclass(frozen=True, slots=True)
class RosenbrockTableau:
    """Coefficients of an exponential Rosenbrock method.

    With J the Jacobian of F at the start of the step, z = hJ, and ``D_i = g(Y_i) - g(y)`` of the
    remainder ``g(v) = F(v) - J v``::

        Y_i = y + h c_i φ_1(c_i z) F(y) + h Σ_j a_ij(z) D_j
        y⁺  = y + h φ_1(z) F(y) + h Σ_i b_i(z) D_i

    Args:
        c: stage times after the first stage, which is y itself.
        a: strictly lower triangle over these stages; row i has i entries.
        b: weights of the result.
        error: weights of the difference to the embedded method, all zero without one.
        order: order of convergence, stiff or not.
        error_order: k, where the difference shrinks as h^k; 0 without one.
        source: where it comes from.

    Raises:
        ValueError: sizes that do not fit.
    """

    c: tuple[float, ...]
    a: tuple[tuple[PhiSum, ...], ...]
    b: tuple[PhiSum, ...]
    error: tuple[PhiSum, ...]
    order: int
    error_order: int
    source: str = ""

    def __post_init__(self) -> None:
        stages = len(self.c)
        if any(len(part) != stages for part in (self.a, self.b, self.error)) or any(
                len(row) != i for i, row in enumerate(self.a)):
            raise ValueError(f"a={self.a}, b={self.b}, error={self.error}: give {stages} rows, row i with i entries, "
                             "and as many weights")
        if any(self.error) != (self.error_order > 0):
            raise ValueError(f"error_order={self.error_order}: give it with weights of the error, and only with them")


@dataclass(frozen=True, slots=True)
class ExponentialRosenbrock:
    """An exponential Rosenbrock method of ``dy/dt = F(y, t)``, whose Jacobian is known by its products only.

    Time counts as a component of the state, so that the order holds for problems that depend on it:
    the Jacobian acts on (w, ω) as ``(J w + ω ∂F/∂t, 0)``. F must be twice differentiable by autograd.

    Args:
        tableau: the method.
        tolerance: error of each product with a function of the Jacobian, relative to ‖y‖ + ‖hF‖ of
            its sample; to be well below the tolerance of the step.
        largest: greatest dimension of a Krylov subspace. A step that needs more fails for the sample
            that does, and the driver repeats it shorter.

    Raises:
        ValueError: a number out of range.

    Cost: 1 + stages evaluations of F, one more where gradients are on, and one Jacobian product (the
        backward pass of a backward pass) for each stage and each Krylov iteration; 1 + stages
        subspaces of ``largest`` + 1 states at most, one after the other (all of them where
        gradients are on).

    Source: Hochbruck, Ostermann & Schweitzer 2009, Exponential Rosenbrock-type methods,
        doi:10.1137/080717717.
    """

    tableau: RosenbrockTableau
    tolerance: float = 1e-10
    largest: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance={self.tolerance}: give a number between 0 and 1")
        if isinstance(self.largest, bool) or not isinstance(self.largest, int) or self.largest < 1:
            raise ValueError(f"largest={self.largest!r}: give a whole number, at least 1")

    @property
    def order(self) -> int:
        """The order of convergence."""
        return self.tableau.order

    @property
    def error_order(self) -> int:
        """The power of h with which the error estimate shrinks; 0 if there is none."""
        return self.tableau.error_order

    def start(self, field: Field, t0: Tensor, y: Tensor) -> tuple[Carry, int]:
        """Nothing that the first step needs."""
        return (), 0

    def step(self, field: Field, t0: Tensor, t1: Tensor, y: Tensor, carry: Carry) -> Step:
        """Go from y at t0 to t1."""
        tableau, h = self.tableau, t1 - t0
        at = _Linearised(field, y, t0)
        size = torch.linalg.vector_norm(_vector(y), dim=1) + torch.linalg.vector_norm(
            column(h, at.slope) * at.slope, dim=1)
        allowed = max(self.tolerance, 4 * torch.finfo(size.dtype).eps) * size
        found = krylov_phi(at.product, at.direction, h, [*(c * varphi(1, c) for c in tableau.c), varphi(1)],
                           allowed=allowed, largest=self.largest)
        *points, result = found.values
        error, converged, iterations = torch.zeros_like(result), found.converged, found.iterations
        for i, c in enumerate(tableau.c):
            remainder = at.remainder(points[i], torch.lerp(t0, t1, c))
            later = [row[i] for row in tableau.a[i + 1:]]
            found = krylov_phi(at.product, remainder, h, [*later, tableau.b[i], tableau.error[i]], allowed=allowed,
                               largest=self.largest)
            *parts, weighted, difference = found.values
            points[i + 1:] = [point + part for point, part in zip(points[i + 1:], parts, strict=True)]
            result, error = result + weighted, error + difference
            converged, iterations = converged & found.converged, iterations + found.iterations + 1  # the remainder's
        new = y + at.state(result)
        estimate = torch.where(converged.reshape(-1, *[1] * (y.ndim - 1)), at.state(error), torch.inf)
        return Step(new, (), estimate, torch.maximum(y.abs(), new.abs()), at.nfe + len(tableau.c), krylov=iterations)


class _Linearised:
    """A right-hand side near (y, t), its Jacobian acting on real vectors (w, ω) of the state and of time.

    ω counts in units of 1/‖F‖, so that state and time weigh alike in a Krylov subspace. A product is
    the gradient of ``u -> Jᵀ u``: it needs no further evaluation, and no forward mode, which many
    functions lack or do slowly.
    """

    def __init__(self, field: Field, y: Tensor, t: Tensor) -> None:
        self._field, self._y = field, y
        now = send(t, y.device)
        # Products keep their graph only where somebody wants gradients, which the plain value tells.
        plain = _vector(field(y, now)) if torch.is_grad_enabled() else None
        self._differentiable = plain is not None and plain.requires_grad
        with torch.inference_mode(False), torch.enable_grad():
            self._change = torch.zeros_like(pad(_vector(y), (0, 1)).detach()).requires_grad_()
            value = _vector(field(y + self.state(self._change), now + self._change[:, -1].double()))
            self._weights = torch.zeros_like(value).requires_grad_()
            self._pulled = _gradient(value, self._change, self._weights, create_graph=True)
        self.slope = value.detach() if plain is None else plain
        self.nfe = 1 if plain is None else 2
        norm = torch.linalg.vector_norm(self.slope.detach(), dim=1, keepdim=True)
        self._unit = torch.where((norm > 0) & torch.isfinite(norm), norm, 1.0)

    @property
    def direction(self) -> Tensor:
        """The right-hand side with that of time, which is 1."""
        return torch.cat((self.slope, self._unit), 1)

    def state(self, vector: Tensor) -> Tensor:
        """The state part of a vector."""
        real = vector[:, :-1]
        if self._y.is_complex():
            return torch.view_as_complex(real.reshape(*self._y.shape, 2))
        return real.reshape(self._y.shape)

    def product(self, vector: Tensor) -> Tensor:
        """The Jacobian times a vector."""
        natural = torch.cat((vector[:, :-1], vector[:, -1:] / self._unit), 1)
        product = _gradient(self._pulled, self._weights, natural, create_graph=self._differentiable)
        return pad(product, (0, 1))

    def remainder(self, increment: Tensor, t: Tensor) -> Tensor:
        """``g(Y) - g(y)`` at the state that lies an increment away, and its time."""
        value = _vector(self._field(self._y + self.state(increment), send(t, self._y.device)))
        return pad(value - self.slope, (0, 1)) - self.product(increment)


def _gradient(value: Tensor, leaf: Tensor, v: Tensor, *, create_graph: bool) -> Tensor:
    """``Jᵀ v``, zero where the value does not depend on the leaf."""
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    (product,) = torch.autograd.grad(value, leaf, v, retain_graph=True, create_graph=create_graph,
                                     materialize_grads=True)
    return product


def _vector(y: Tensor) -> Tensor:
    """Real vectors of shape (samples, n): a Jacobian may be linear over the real numbers only."""
    return (torch.view_as_real(y) if y.is_complex() else y).reshape(len(y), -1)


_SOURCE = "Hochbruck, Ostermann & Schweitzer 2009, doi:10.1137/080717717"

ROSENBROCK_EULER = RosenbrockTableau((), (), (), (), 2, 0, "exponential Rosenbrock–Euler, Pope 1963")
EXPRB32 = RosenbrockTableau((1.0,), ((),), (2 * varphi(3),), (2 * varphi(3),), 3, 3, _SOURCE)
EXPRB43 = RosenbrockTableau(
    (0.5, 1.0), ((), (varphi(1),)), (16 * varphi(3) - 48 * varphi(4), 12 * varphi(4) - 2 * varphi(3)),
    (-48 * varphi(4), 12 * varphi(4)), 4, 4, _SOURCE)
