"""Full counts or small ones: `make soak` sets PACA_SOAK, and the same tests run longer; only a number differs."""

from __future__ import annotations

import os

from hypothesis import settings

SOAK = bool(os.environ.get("PACA_SOAK"))


def examples(few: int, many: int) -> settings:
    """How many examples hypothesis draws: `few`, always the same, or in a soak `many`, drawn anew each time."""
    return settings(max_examples=many if SOAK else few, derandomize=not SOAK, database=None, deadline=None)
