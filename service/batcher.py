"""Joins pictures that arrive while the engine is busy into one run. Knows no engine: it gets a callable.
Metrics are exported by the HTTP layer, from `Counters`.

The promise, one test a sentence in tests/service/test_batcher.py:
 1. Every submitted item gets exactly one answer: its own row, or one PacaError.
 2. A run holds at most max_batch items, all with the same key, in the order they came.
 3. An item waits only while every instance is busy, or the room it shares with other batchers is taken.
    max_wait > 0 lets a run that is not full wait that long after its first item came; a full one passes it.
 4. A caller that leaves changes nothing for the others; what it left in the queue is never run.
 5. A run that fails fails its own items only: each is run once more, alone, and then answered EngineFailure,
    or the PacaError that run raised.
 6. A run that returns another number of results than it got items has failed; so has one whose thread
    cannot be started.
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
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, field
from threading import Lock
from typing import Any, Generic, TypeVar
from weakref import WeakSet

from .errors import DeadlineExceeded, Draining, EngineFailure, Overloaded, PacaError

T = TypeVar("T")
R = TypeVar("R")
LONGEST_RETRY_AFTER_SECONDS = 30.0


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


@dataclass(frozen=True)
class Bounds:
    """max_batch: items a run. max_wait: seconds that a run which is not full waits. queue_size: items that
    wait. instances: runs at the same time."""

    max_batch: int = 1
    max_wait: float = 0.0
    queue_size: int = 64
    instances: int = 1

    def __post_init__(self) -> None:
        if min(self.max_batch, self.queue_size, self.instances) < 1 or self.max_wait < 0:
            raise ValueError("max_batch, queue_size and instances must be at least 1, max_wait at least 0")


@dataclass(frozen=True)
class Counters:
    """What happened since the start. runs, items: runs and the items in them. dropped: items whose caller
    had left before they ran. expired: past their deadline. retried: run once more, alone. failed: answered
    EngineFailure. rejected: refused because the queue was full."""

    runs: int = 0
    items: int = 0
    dropped: int = 0
    expired: int = 0
    retried: int = 0
    failed: int = 0
    rejected: int = 0

    def __add__(self, other: Counters) -> Counters:
        return Counters(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


class Room:
    """Cores that several batchers share, so that together they start no more runs than there is room for.

    cores: how many; a batcher that may use more by itself makes room for that, so that one alone never waits.
    Who finds no room is told when there is some, in the order of asking. Belongs to one event loop.
    """

    def __init__(self, cores: int) -> None:
        self.cores, self.taken = cores, 0
        self._base = cores
        self._shares: WeakSet[Share] = WeakSet()
        self._lock = Lock()  # of the shares: models are loaded in other threads
        self._waiting: dict[Share, Callable[[], None]] = {}  # in the order of asking

    def share(self, threads: int, instances: int) -> Share:
        """The part of one batcher: up to `instances` runs of `threads` threads each. From any thread."""
        share = Share(self, threads, threads * instances)
        with self._lock:
            self._shares.add(share)
            self._measure()
        return share

    def _measure(self) -> None:
        self.cores = max(self._base, *(share.most for share in self._shares), 0)

    def take(self, share: Share, tell: Callable[[], None]) -> bool:
        """Room for one run; if there is none, `tell` is called once there is."""
        first = next(iter(self._waiting), share)
        if first is not share or self.taken + share.threads > self.cores:
            self._waiting.setdefault(share, tell)
            return False
        self._waiting.pop(share, None)
        self.taken += share.threads
        return True

    def give_back(self, share: Share) -> None:
        """A run of `share` is over."""
        self.taken -= share.threads
        self._tell()

    def leave(self, share: Share) -> None:
        """`share` has nothing to run now: the next one's turn."""
        if self._waiting.pop(share, None):
            self._tell()

    def end(self, share: Share) -> None:
        """`share` will run nothing any more."""
        with self._lock:
            self._shares.discard(share)
            self._measure()
        self.leave(share)

    def _tell(self) -> None:
        while self._waiting:
            share, tell = next(iter(self._waiting.items()))
            tell()
            if next(iter(self._waiting), None) is share:
                return  # there is no room for it yet, and nobody passes it


@dataclass(frozen=True, eq=False)
class Share:
    """One batcher's part of a `Room`. threads: cores of one run; most: of all its runs at once."""

    room: Room
    threads: int
    most: int


class _Run(Generic[T]):
    """Items on their way into a thread. Whoever claims it first, the thread or the one who gave up on
    starting it, has it."""

    def __init__(self, batch: list[_Entry[T]]) -> None:
        self.batch = batch
        self._lock = Lock()

    def claim(self) -> bool:
        return self._lock.acquire(blocking=False)


class Batcher(Generic[T, R]):
    """run: items → results in the same order, blocking; called in up to `bounds.instances` threads at once.
    key: items share a run only when key(item) is equal, e.g. their shape. share: of the room it has in
    common with other batchers. For metrics: depth (items waiting), in_flight (items running), counters."""

    def __init__(
        self,
        run: Callable[[list[T]], Sequence[R]],
        bounds: Bounds | None = None,
        *,
        key: Callable[[T], Hashable] | None = None,
        share: Share | None = None,
    ) -> None:
        self._run, self._key = run, key
        self.bounds = bounds or Bounds()
        self._share = share or Room(0).share(1, self.bounds.instances)
        self._pool = ThreadPoolExecutor(self.bounds.instances, thread_name_prefix="batcher")
        self._waiting: deque[_Entry[T]] = deque()
        self._running = 0  # runs in the pool
        self._scheduled = False  # a dispatch is due in this tick
        self._timer: asyncio.TimerHandle | None = None  # a dispatch is due when max_wait is over
        self._closed = False
        self._empty: asyncio.Future[None] | None = None  # close() waits for it
        self._seconds_per_item = 0.0  # smoothed, of one instance; 0 before the first run
        self.in_flight = self.runs = self.items = 0
        self.dropped = self.expired = self.retried = self.failed = self.rejected = 0

    @property
    def counters(self) -> Counters:
        """What happened until now."""
        return Counters(
            self.runs, self.items, self.dropped, self.expired, self.retried, self.failed, self.rejected
        )

    @property
    def depth(self) -> int:
        return len(self._waiting)

    @property
    def retry_after(self) -> float:
        """Seconds until what waits now will have been run, from measured runs; 1 before the first."""
        return (
            min(
                self._seconds_per_item * (len(self._waiting) + self.in_flight) / self.bounds.instances,
                LONGEST_RETRY_AFTER_SECONDS,
            )
            or 1.0
        )

    async def submit(self, item: T, deadline: float | None = None) -> Answer[R]:
        """The item's answer. deadline: a time.monotonic() value. Raises Overloaded, Draining,
        DeadlineExceeded, EngineFailure, or run's PacaError."""
        if self._closed:
            raise Draining("the server is shutting down; send the request again to another one")
        if len(self._waiting) >= self.bounds.queue_size:
            self._dispatch()  # of this tick's items, what an idle instance can take
        if len(self._waiting) >= self.bounds.queue_size:
            self.rejected += 1
            raise Overloaded(
                "too many pictures are waiting; try again later",
                retry_after=self.retry_after,
                limit="queue_size",
                value=self.bounds.queue_size,
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
        if self.bounds.max_batch == 1:
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
        self._share.room.end(self._share)
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
        if not self._waiting:
            self._share.room.leave(self._share)
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
        """Starts runs while there is an idle instance, room and something to run."""
        self._scheduled = False
        room = self._share.room
        while self._running < self.bounds.instances and (first := self._next()):
            if not room.take(self._share, self._dispatch):
                break
            batch = self._form(first)
            if not batch:
                room.give_back(self._share)
            elif not self._start(batch):
                break
        else:
            room.leave(self._share)
        self._tell_if_empty()

    def _next(self) -> _Entry[T] | None:
        """The oldest item whose run may start now; None where nothing waits or all wait for batch-mates."""
        if not self._waiting:
            return None
        if not self.bounds.max_wait or self._closed:
            return self._waiting[0]
        waiting = Counter(entry.key for entry in self._waiting if not entry.alone)
        over = time.monotonic() - self.bounds.max_wait
        for entry in self._waiting:
            if entry.alone or entry.arrived <= over or waiting[entry.key] >= self.bounds.max_batch:
                return entry
        if self._timer is not None:
            self._timer.cancel()
        left = self._waiting[0].arrived - over
        self._timer = asyncio.get_running_loop().call_later(left, self._dispatch)
        return None

    @staticmethod
    def _fits(entry: _Entry[T], first: _Entry[T]) -> bool:
        return entry is first or (entry.key == first.key and not entry.alone and not first.alone)

    def _form(self, first: _Entry[T]) -> list[_Entry[T]]:
        """The next run: `first` and those behind it that may share its run, without those that are gone or
        too late."""
        batch: list[_Entry[T]] = []
        passed: list[_Entry[T]] = []
        now = time.monotonic()
        while self._waiting[0] is not first:
            passed.append(self._waiting.popleft())
        while self._waiting and len(batch) < self.bounds.max_batch:
            entry = self._waiting.popleft()
            if not self._fits(entry, first):
                passed.append(entry)
            elif entry.future.done():
                self.dropped += 1  # cancelled in this very tick: its submit has not come round yet
            elif entry.deadline is not None and entry.deadline <= now:
                self._expire(entry)
            else:
                batch.append(entry)
        self._waiting.extendleft(reversed(passed))
        return batch

    def _start(self, batch: list[_Entry[T]]) -> bool:
        """Hands a run to the pool; False where no thread can be started and others still work: they will."""
        self._running += 1
        self.in_flight += len(batch)
        run = _Run(batch)
        try:
            self._pool.submit(self._work, run, asyncio.get_running_loop())
        except RuntimeError as error:  # the system starts no further thread; the run may lie in the pool now
            if not run.claim():
                return True  # a thread that had just become idle has taken it
            self._release(batch)
            if self._running:
                self._waiting.extendleft(reversed(batch))
                return False
            self._fail_or_retry(batch, error)
        return True

    def _work(self, run: _Run[T], loop: asyncio.AbstractEventLoop) -> None:
        """In a thread of the pool: the run, and its outcome back to the loop."""
        if not run.claim():
            return
        batch = run.batch
        started = time.monotonic()
        outcome: Sequence[R] | BaseException
        try:
            outcome = self._run([entry.item for entry in batch])
            if len(outcome) != len(batch):
                outcome = ValueError(f"{len(outcome)} results for {len(batch)} items")
        except BaseException as error:  # whatever it is, it is these callers' answer, and the pool lives on
            outcome = error
        loop.call_soon_threadsafe(self._finish, batch, outcome, started, time.monotonic())

    def _release(self, batch: list[_Entry[T]]) -> None:
        self._running -= 1
        self.in_flight -= len(batch)
        self._share.room.give_back(self._share)

    def _finish(
        self, batch: list[_Entry[T]], outcome: Sequence[R] | BaseException, started: float, ended: float
    ) -> None:
        self.runs += 1
        self.items += len(batch)
        if isinstance(outcome, BaseException):
            self._fail_or_retry(batch, outcome)
        else:
            seconds = (ended - started) / len(batch)
            weight = 0.1 if self._seconds_per_item else 1.0
            self._seconds_per_item += (seconds - self._seconds_per_item) * weight
            for entry, result in zip(batch, outcome, strict=True):
                if not entry.future.done():
                    entry.future.set_result(
                        Answer(result, (started - entry.arrived) * 1e3, (ended - started) * 1e3, len(batch))
                    )
        self._release(batch)
        self._dispatch()

    def _fail_or_retry(self, batch: list[_Entry[T]], error: BaseException) -> None:
        for entry in reversed(batch):  # to the front of the queue, the first one first
            if entry.alone or (len(batch) == 1 and isinstance(error, PacaError)):
                if isinstance(error, PacaError):
                    final = error
                else:
                    final = EngineFailure("the engine failed on this picture twice; try again later")
                    final.__cause__ = error
                self.failed += _fail(entry, final) and isinstance(final, EngineFailure)
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
