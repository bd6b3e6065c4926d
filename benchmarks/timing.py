"""How long one call takes, as every benchmark of single calls takes it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def median_ms(run: Callable[[], object], seconds: float, *, warm_up: int = 1) -> float:
    """Median milliseconds of as many runs as fit into `seconds`, at least one, after `warm_up` that do not
    count."""
    for _ in range(warm_up):
        run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        began = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)
