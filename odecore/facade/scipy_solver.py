"""SciPy's methods behind :func:`odecore.facade.odeint.odeint`: on the host, without gradients."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odecore.facade.system import System


@dataclass(frozen=True, slots=True)
class Scipy:
    """Options of a solve by :func:`scipy.integrate.solve_ivp`.

    Args:
        solver: its method: "LSODA", "RK45", "BDF", ….
        min_step: least length of a step; LSODA alone takes it.
        max_step: greatest length of a step.
    """

    solver: str = "LSODA"
    min_step: float = 0.0
    max_step: float = math.inf

    def states(self, system: System, y0: Tensor, t: Tensor, rtol: float | Tensor, atol: float | Tensor) -> Tensor:
        """Integrate; see :func:`odecore.facade.fixed.fixed_states`.

        Raises:
            ValueError: something requires a gradient, which SciPy does not have, or its solver fails.
        """
        from scipy.integrate import solve_ivp  # heavy, and needed here alone

        if torch.is_grad_enabled() and (y0.requires_grad or t.requires_grad):
            raise ValueError("y0 or t requires a gradient, which method='scipy_solver' does not have: choose 'dopri5' "
                             "or 'kvaerno5', or call under torch.no_grad()")

        begin = t[:1].expand(len(y0)).to(y0.device)
        if torch.is_grad_enabled() and system.field(y0, begin).requires_grad:
            warnings.warn("func reads parameters that require a gradient, and get none from method='scipy_solver': "
                          "choose 'dopri5' or 'kvaerno5', or call under torch.no_grad()", stacklevel=4)

        def field(time: float, y: Any) -> Any:
            state = torch.as_tensor(y).to(y0.device, y0.dtype).reshape(y0.shape)
            with torch.no_grad():
                return system.field(state, torch.full((len(y0),), time, dtype=torch.float64)).cpu().numpy().reshape(-1)

        limits: dict[str, float] = {"max_step": self.max_step}
        if self.min_step:
            limits["min_step"] = self.min_step
        found = solve_ivp(field, (float(t[0]), float(t[-1])), y0.detach().cpu().numpy().reshape(-1), t_eval=t.numpy(),
                          method=self.solver, rtol=_numbers(rtol, y0), atol=_numbers(atol, y0), **limits)
        if not found.success:
            raise ValueError(f"solver={self.solver!r} failed ({found.message}): choose another one or other tolerances")
        return torch.as_tensor(found.y.T).to(y0.device, y0.dtype).reshape(len(t), *y0.shape)


def _numbers(tolerance: float | Tensor, y0: Tensor) -> Any:
    return tolerance if isinstance(tolerance, float) else tolerance.expand(y0.shape).cpu().numpy().reshape(-1)
