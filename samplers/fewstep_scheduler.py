"""Lets a repository of the Hub bring FewStepScheduler along: a copy of this file goes into its ``scheduler/``.

See :func:`samplers.diffusers_hub.bring_scheduler`. Whoever loads the pipeline needs the package ``fewstep`` installed,
and passes ``trust_remote_code=True``, for diffusers runs this file.
"""

from samplers.diffusers import FewStepScheduler

__all__ = ["FewStepScheduler"]
