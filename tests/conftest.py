"""What holds for every test: no network, no window, and examples that are the same in every CI run."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from hypothesis import settings  # noqa: E402 (the variables above must be set before anything else is imported)

settings.register_profile("fewstep", deadline=None, derandomize=os.environ.get("CI") == "true", database=None)
settings.load_profile("fewstep")
