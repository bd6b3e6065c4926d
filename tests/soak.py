"""Full counts or small ones: `make soak` sets PACA_SOAK, and the same tests run longer; only a number
differs."""

from __future__ import annotations

import os

from hypothesis import settings

SOAK = bool(os.environ.get("PACA_SOAK"))


def count(few: int, many: int) -> int:
    """How often, here: `many` in a soak."""
    return many if SOAK else few


def examples(few: int, many: int) -> settings:
    """How many examples hypothesis draws: `few`, always the same, or in a soak `many`, drawn anew each
    time."""
    return settings(max_examples=count(few, many), derandomize=not SOAK, database=None, deadline=None)
