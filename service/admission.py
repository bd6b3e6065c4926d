"""How many pictures of one model may be in flight: the bound that stands before decoding and the queue.

The engine's own queue is bounded by `batcher`; this bound is the narrower one. So a refusal costs neither the
reading of a body nor a decode, and what was admitted is not refused half way. Each model has its own bound: a
model under load leaves an idle one its room. Memory is watched for the machine as a whole.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import cgroup
from .errors import Overloaded

WATERMARK = 0.9  # of the container's memory
LOOK_SECONDS = 0.25  # between looks at the memory


class Admission:
    """Counts one model's pictures in flight. All calls belong to one event loop. retry_after: seconds after
    which there should be room, for those who are refused."""

    def __init__(self, limit: int) -> None:
        self.limit, self.in_flight = limit, 0

    def check(self, retry_after: float = 1.0) -> None:
        """Overloaded while `limit` pictures are in flight."""
        if self.in_flight >= self.limit:
            raise Overloaded(
                "too many pictures are in flight; try again in a moment",
                retry_after=retry_after,
                reason="queue",
            )

    @contextmanager
    def admit(self, pictures: int, retry_after: float = 1.0) -> Iterator[None]:
        """Counts a request's pictures as in flight; Overloaded where there is no room. The last request
        admitted may pass the limit: it is served whole."""
        self.check(retry_after)
        self.in_flight += pictures
        try:
            yield
        finally:
            self.in_flight -= pictures


class MemoryWatch:
    """Looks at the container's memory now and then. All calls belong to one event loop."""

    def __init__(self, root: Path = cgroup.ROOT) -> None:
        self._root = root
        self._looked, self._tight = float("-inf"), False

    def check(self) -> None:
        """Overloaded while memory is short."""
        now = time.monotonic()
        if now - self._looked > LOOK_SECONDS:
            self._looked, self._tight = now, cgroup.memory_used(self._root) >= WATERMARK
        if self._tight:
            raise Overloaded("the server is short of memory; try again in a moment", reason="memory")
