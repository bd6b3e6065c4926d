"""Joins pictures that arrive while the engine is busy into one run. Knows no engine: it gets a callable.
Metrics are the HTTP layer's.

The promise, one test a sentence in tests/service/test_batcher.py:
 1. Every submitted item gets exactly one answer: its own row, or one PacaError.
 2. A run holds at most max_batch items, all with the same key, in the order they came.
 3. An item waits only while every instance is busy; max_wait > 0 lets a run that is not full wait that long
    after its first item came.
 4. A caller that leaves changes nothing for the others; what it left in the queue is never run.
 5. A run that fails fails its own items only: each is run once more, alone, and then answered EngineFailure,
    or the PacaError that run raised.
 6. A run that returns another number of results than it got items has failed.
 7. At most queue_size items wait; beyond that submit raises Overloaded at once, with the seconds after which
    there should be room.
 8. An item whose deadline passes is answered DeadlineExceeded then, and is not run if it still waits.
 9. close() answers everyone: what runs finishes, what waits finishes too or, once the grace is over, is
    answered Draining, as is every later submit.

All state belongs to the event loop's thread; only `run` itself is called in the pool's threads. Times are
those of the monotonic clock.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from .errors import DeadlineExceeded, Draining, EngineFailure, Overloaded, PacaError

T = TypeVar("T")
R = TypeVar("R")
LONGEST_RETRY_AFTER = 30.0


@dataclass(frozen=True)
class Answer(Generic[R]):
    """One item's result. queue_ms: from submit to the start of the run that answered; inference_ms: that run;
    batch_size: items that shared it."""

    result: R
    queue_ms: float
    inference_ms: float
    batch_size: int


@dataclass(eq=False)
class _Entry(Generic[T]):
    item: T
    key: Hashable
    deadline: float | None
    future: asyncio.Future[Answer[Any]]
    arrived: float = field(default_factory=time.monotonic)
    alone: bool = False  # its run failed once: next time it goes by itself


class Batcher(Generic[T, R]):
    """run: items → results in the same order, blocking; called in up to `instances` threads at once.
    max_wait: seconds. queue_size: waiting items. key: items share a run only when key(item) is equal, e.g.
    their shape. Attributes for metrics: depth (items waiting), in_flight (items running); batches, items
    (runs and the items in them), dropped (callers gone before their item ran), expired, retried, rejected."""

    def __init__(
        self,
        run: Callable[[list[T]], Sequence[R]],
        *,
        max_batch: int = 1,
        max_wait: float = 0.0,
        queue_size: int = 64,
        instances: int = 1,
        key: Callable[[T], Hashable] | None = None,
    ) -> None:
        if min(max_batch, queue_size, instances) < 1 or max_wait < 0:
            raise ValueError("max_batch, queue_size and instances must be at least 1, max_wait at least 0")
        self._run, self._key = run, key
        self.max_batch, self.max_wait, self.queue_size, self.instances = (
            max_batch,
            max_wait,
            queue_size,
            instances,
        )
        self._pool = ThreadPoolExecutor(instances, thread_name_prefix="batcher")
        self._waiting: deque[_Entry[T]] = deque()
        self._running = 0  # runs in the pool
        self._scheduled = False  # a dispatch is due in this tick
        self._timer: asyncio.TimerHandle | None = None  # a dispatch is due when max_wait is over
        self._closed = False
        self._empty: asyncio.Future[None] | None = None  # close() waits for it
        self._seconds_per_item = 0.0  # smoothed, of one instance; 0 before the first run
        self.in_flight = self.batches = self.items = self.dropped = self.expired = self.retried = (
            self.rejected
        ) = 0

    @property
    def depth(self) -> int:
        return len(self._waiting)

    @property
    def retry_after(self) -> float:
        """Seconds until what waits now will have been run, from measured runs; 1 before the first."""
        return (
            min(
                self._seconds_per_item * (len(self._waiting) + self.in_flight) / self.instances,
                LONGEST_RETRY_AFTER,
            )
            or 1.0
        )

    async def submit(self, item: T, deadline: float | None = None) -> Answer[R]:
        """The item's answer. deadline: a time.monotonic() value. Raises Overloaded, Draining,
        DeadlineExceeded, EngineFailure, or run's PacaError."""
        if self._closed:
            raise Draining("the server is shutting down; send the request again to another one")
        if len(self._waiting) >= self.queue_size:
            self._dispatch()  # of this tick's items, what an idle instance can take
        if len(self._waiting) >= self.queue_size:
            self.rejected += 1
            raise Overloaded(
                "too many pictures are waiting; try again later",
                retry_after=self.retry_after,
                limit="queue_size",
                value=self.queue_size,
            )
        loop = asyncio.get_running_loop()
        entry: _Entry[T] = _Entry(
            item, self._key(item) if self._key else None, deadline, loop.create_future()
        )
        timer = (
            None
            if deadline is None
            else loop.call_later(max(0.0, deadline - entry.arrived), self._expire, entry)
        )
        self._waiting.append(entry)
        if self.max_batch == 1:
            self._dispatch()
        elif not self._scheduled:  # what is submitted in one tick of the loop shares a run
            self._scheduled = True
            loop.call_soon(self._dispatch)
        try:
            return await entry.future
        except asyncio.CancelledError:
            if self._forget(entry):
                self.dropped += 1
            raise
        finally:
            if timer is not None:
                timer.cancel()

    async def close(self, grace: float | None = None) -> None:
        """Returns when everyone is answered and nothing runs. grace: seconds that queued items still get;
        None = until all of them have run. A run is never interrupted: one that hangs holds close() up, though
        not its callers' deadlines."""
        self._closed = True
        self._dispatch()
        try:
            async with asyncio.timeout(grace):
                await self._emptied()
        except TimeoutError:
            for entry in tuple(self._waiting):
                self._forget(entry)
                _fail(entry, Draining("the server is shutting down; send the request again to another one"))
            await self._emptied()
        self._pool.shutdown(wait=False)

    async def _emptied(self) -> None:
        if self._empty is None:
            self._empty = asyncio.get_running_loop().create_future()
        self._tell_if_empty()
        await asyncio.shield(self._empty)

    def _tell_if_empty(self) -> None:
        if self._empty is not None and not self._empty.done() and not self._waiting and not self._running:
            self._empty.set_result(None)

    def _forget(self, entry: _Entry[T]) -> bool:
        """Takes an entry out of the queue; False if it was not there any more."""
        try:
            self._waiting.remove(entry)
        except ValueError:
            return False
        self._tell_if_empty()
        return True

    def _expire(self, entry: _Entry[T]) -> None:
        self._forget(entry)
        if _fail(
            entry,
            DeadlineExceeded(
                "the deadline passed before the answer was there; try again later, or allow more time"
            ),
        ):
            self.expired += 1

    def _dispatch(self) -> None:
        """Starts runs while there is an idle instance and something to run."""
        self._scheduled = False
        while self._waiting and self._running < self.instances and not self._should_wait(self._waiting[0]):
            batch = self._form()
            if batch:
                self._running += 1
                self.in_flight += len(batch)
                self._pool.submit(self._work, batch, asyncio.get_running_loop())
        self._tell_if_empty()

    def _should_wait(self, first: _Entry[T]) -> bool:
        if (
            self.max_wait == 0
            or self._closed
            or first.alone
            or sum(self._fits(entry, first) for entry in self._waiting) >= self.max_batch
        ):
            return False
        left = first.arrived + self.max_wait - time.monotonic()
        if left <= 0:
            return False
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(left, self._dispatch)
        return True

    @staticmethod
    def _fits(entry: _Entry[T], first: _Entry[T]) -> bool:
        return entry is first or (entry.key == first.key and not entry.alone and not first.alone)

    def _form(self) -> list[_Entry[T]]:
        """The next run: the oldest item and those behind it that may share its run, without those that are
        gone or too late."""
        batch: list[_Entry[T]] = []
        passed: list[_Entry[T]] = []
        now = time.monotonic()
        while self._waiting and len(batch) < self.max_batch:
            entry = self._waiting.popleft()
            if entry.future.done():
                self.dropped += 1  # cancelled in this very tick: its submit has not come round yet
            elif entry.deadline is not None and entry.deadline <= now:
                self._expire(entry)
            elif not batch or self._fits(entry, batch[0]):
                batch.append(entry)
            else:
                passed.append(entry)
        self._waiting.extendleft(reversed(passed))
        return batch

    def _work(self, batch: list[_Entry[T]], loop: asyncio.AbstractEventLoop) -> None:
        """In a thread of the pool: the run, and its outcome back to the loop."""
        started = time.monotonic()
        outcome: Sequence[R] | BaseException
        try:
            outcome = self._run([entry.item for entry in batch])
            if len(outcome) != len(batch):
                outcome = ValueError(f"{len(outcome)} results for {len(batch)} items")
        except BaseException as error:  # whatever it is, it is these callers' answer, and the pool lives on
            outcome = error
        loop.call_soon_threadsafe(self._finish, batch, outcome, started, time.monotonic())

    def _finish(
        self, batch: list[_Entry[T]], outcome: Sequence[R] | BaseException, started: float, ended: float
    ) -> None:
        self._running -= 1
        self.in_flight -= len(batch)
        self.batches += 1
        self.items += len(batch)
        if isinstance(outcome, BaseException):
            self._fail_or_retry(batch, outcome)
        else:
            seconds = (ended - started) / len(batch)
            self._seconds_per_item += (seconds - self._seconds_per_item) * (
                0.1 if self._seconds_per_item else 1.0
            )
            for entry, result in zip(batch, outcome, strict=True):
                if not entry.future.done():
                    entry.future.set_result(
                        Answer(result, (started - entry.arrived) * 1e3, (ended - started) * 1e3, len(batch))
                    )
        self._dispatch()

    def _fail_or_retry(self, batch: list[_Entry[T]], error: BaseException) -> None:
        for entry in reversed(batch):  # to the front of the queue, the first one first
            if entry.alone or (len(batch) == 1 and isinstance(error, PacaError)):
                final = (
                    error
                    if isinstance(error, PacaError)
                    else EngineFailure("the engine failed on this picture twice; try again later")
                )
                final.__cause__ = None if final is error else error
                _fail(entry, final)
            elif not entry.future.done():
                entry.alone = True
                self.retried += 1
                self._waiting.appendleft(entry)


def _fail(entry: _Entry[Any], error: PacaError) -> bool:
    """Answers with an error, if nothing was answered yet."""
    if entry.future.done():
        return False
    entry.future.set_exception(error)
    return True
