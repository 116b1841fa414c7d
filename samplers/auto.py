"""The solver "auto": a small table that chooses solver and grid by the kind of schedule and the evaluations."""

from __future__ import annotations

from scoremodels.schedule import EDM, VE, NoiseSchedule, RectifiedFlow


def choose(schedule: NoiseSchedule, nfe: int) -> tuple[str, str]:
    """Name a solver and a grid."""
    if isinstance(schedule, EDM | VE):
        return ("ipndm-3", "align-your-steps:svd") if nfe < 8 else ("deis-4", "align-your-steps:svd")
    if isinstance(schedule, RectifiedFlow):
        return "dpm-solver++-2m", "time:shift-3"
    return "dpm-solver-3m", "log-snr"
