"""Who may work: a bounded number of pictures past their upload, a memory watermark, one deadline each, and no
work for a caller who left.

The engine's own queue is bounded by `batcher`; this bound stands before it and is the narrower one, so that a
refusal costs neither the reading of a body nor a decode, and what was admitted is not refused half way.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from starlette.types import Receive

from ..errors import DeadlineExceeded, Overloaded
from .problems import ClientGone

T = TypeVar("T")
WATERMARK = 0.9  # of the container's memory
LOOK_SECONDS = 0.25  # between looks at the memory
CGROUP = Path("/sys/fs/cgroup")


class Admission:
    """Counts the pictures at work. All calls belong to one event loop."""

    def __init__(self, cgroup: Path = CGROUP) -> None:
        self.working = 0
        self._cgroup = cgroup
        self._looked, self._tight = float("-inf"), False

    def check(self, limit: int) -> None:
        """Overloaded while `limit` pictures are at work, or memory is short."""
        if self.working >= limit:
            raise Overloaded("too many pictures are at work; try again in a moment", reason="queue")
        now = time.monotonic()
        if now - self._looked > LOOK_SECONDS:
            self._looked, self._tight = now, memory_used(self._cgroup) >= WATERMARK
        if self._tight:
            raise Overloaded("the server is short of memory; try again in a moment", reason="memory")

    @asynccontextmanager
    async def work(self, limit: int, pictures: int = 1) -> AsyncIterator[None]:
        """Counts a request's pictures as at work; Overloaded where there is no room. The last one admitted
        may pass the limit: it is served whole."""
        self.check(limit)
        self.working += pictures
        try:
            yield
        finally:
            self.working -= pictures


def memory_used(cgroup: Path = CGROUP) -> float:
    """Part of the container's memory limit in use, page cache that can be dropped left out; 0 where there is
    no limit."""
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        if limit == "max":
            return 0.0
        used = int((cgroup / "memory.current").read_text())
        cache = next(
            int(line.split()[1])
            for line in (cgroup / "memory.stat").read_text().splitlines()
            if line.startswith("inactive_file ")
        )
        return (used - cache) / int(limit)
    except (OSError, ValueError, StopIteration, ZeroDivisionError):
        return 0.0


async def run_until_deadline(work: Coroutine[Any, Any, T], receive: Receive, deadline: float) -> T:
    """The result of `work`, unless the deadline (`time.monotonic()` seconds) passes or the caller hangs up
    first: then the work is cancelled.

    The body must have been read: the only message left to receive is the disconnect.
    """
    task: asyncio.Task[T] = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait(
            (task, gone), timeout=max(0.0, deadline - time.monotonic()), return_when=asyncio.FIRST_COMPLETED
        )
        if task.done():
            return task.result()
        if gone.done():
            raise ClientGone("the client went away before its answer was ready")
        raise DeadlineExceeded(
            "the deadline passed before the answer was ready; send fewer requests at once, or raise "
            "PACA_DEADLINE_MS"
        )
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
