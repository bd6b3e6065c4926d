"""Which threads decode which picture: ordinary ones the caller's, those of untrusted cost a lane of their
own, so that no ordinary picture ever waits behind them.

`Lane` is that lane: its own threads and its own small queue, one for the whole server. `DecodePool` sends
pictures to the right place. Deadlines are absolute `time.monotonic()` seconds.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from ..errors import DeadlineExceeded, Overloaded
from .formats import screen
from .source import Limits, Source

T = TypeVar("T")
LANE_THREADS = 1  # each keeps one decoder process busy, which may take a core and 20 bytes a pixel
LANE_WAITING = 32  # pictures: two requests of the default 16
FIRST_GUESS_SECONDS = 0.5  # of one picture, until one was measured
NEWEST_SHARE = 0.2  # of the newest picture in the running mean


class Lane:
    """Threads with a bounded queue that measures how long its entries take. Safe to use from many
    event loops."""

    def __init__(self, threads: int = LANE_THREADS, waiting: int = LANE_WAITING) -> None:
        self._threads, self._most = threads, threads + waiting
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="untrusted-pixels")
        self._lock = threading.Lock()
        self._in_flight, self._seconds = 0, FIRST_GUESS_SECONDS

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Queues `work`. Overloaded, with the time that the queue will take, where it is full."""
        with self._lock:
            if self._in_flight >= self._most:
                raise Overloaded(
                    "too many pictures that are costly to decode are waiting; try again later, or send JPEGs",
                    retry_after=self._in_flight * self._seconds / self._threads,
                )
            self._in_flight += 1
        future = self._executor.submit(self._timed, work)
        future.add_done_callback(self._done)  # also when it is cancelled before it began
        return future

    def _timed(self, work: Callable[[], T]) -> T:
        began = time.monotonic()
        try:
            return work()
        finally:
            self._seconds += NEWEST_SHARE * (time.monotonic() - began - self._seconds)

    def _done(self, _: Future[T]) -> None:
        with self._lock:
            self._in_flight -= 1


untrusted_lane = Lane()


class DecodePool:
    """Decodes for one event loop. executor: the threads for ordinary pictures, which stay their owner's."""

    def __init__(self, executor: Executor, lane: Lane = untrusted_lane) -> None:
        self._executor, self._lane = executor, lane

    async def run(
        self, data: bytes, limits: Limits, work: Callable[[Source], T], deadline: float | None = None
    ) -> T:
        """Screens a file and gives what `work` makes of it, in a thread that may take that long.

        Raises NotAnImage, TooLarge or BadImage; Overloaded where the untrusted lane is full; DeadlineExceeded
        where the deadline passed before work began; and whatever `work` raises.
        """
        loop = asyncio.get_running_loop()
        outcome = await loop.run_in_executor(self._executor, partial(_begin, data, limits, work, deadline))
        if not isinstance(outcome, _Untrusted):
            return outcome
        return await asyncio.wrap_future(self._lane.submit(partial(_run, work, outcome.source, deadline)))


class _Untrusted:
    def __init__(self, source: Source) -> None:
        self.source = source


def _begin(
    data: bytes, limits: Limits, work: Callable[[Source], T], deadline: float | None
) -> T | _Untrusted:
    _check(deadline)
    source = screen(data, limits)
    return _Untrusted(source) if source.untrusted_cost else work(source)


def _run(work: Callable[[Source], T], source: Source, deadline: float | None) -> T:
    _check(deadline)
    return work(source)


def _check(deadline: float | None) -> None:
    if deadline is not None and time.monotonic() >= deadline:
        raise DeadlineExceeded(
            "the deadline passed before the picture was processed; send fewer requests at once, or raise "
            "PACA_DEADLINE_MS"
        )
