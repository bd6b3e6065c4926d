"""The whole promise of the batcher under thousands of random cancellations, failures and deadlines."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest

from service.batcher import Batcher, Bounds
from service.errors import PacaError


@pytest.mark.parametrize(
    ("seed", "bounds", "key"),
    [
        (1, Bounds(max_batch=1, queue_size=30), None),
        (2, Bounds(max_batch=8, queue_size=100, instances=3), None),
        (3, Bounds(max_batch=5, queue_size=50, instances=2, max_wait=0.002), lambda item: item % 3),
    ],
)
def test_the_promise_holds_under_thousands_of_random_cancellations_failures_and_deadlines(
    seed: int, bounds: Bounds, key: Callable[[int], int] | None
) -> None:
    """3,000 callers a case, more where a slow machine needs them to see every outcome. Every tenth item
    breaks its run always, some break one at random, some runs return too little, callers leave at any
    time."""
    chance = random.Random(seed)
    runs: Counter[int] = Counter()
    lock = threading.Lock()

    def run(items: list[int]) -> list[int]:
        assert 1 <= len(items) <= bounds.max_batch
        if key:
            assert len({key(item) for item in items}) == 1
        with lock:
            runs.update(items)
            luck, pause = chance.random(), chance.random() * 0.001
        time.sleep(pause)
        if any(item % 10 == 0 for item in items) or luck < 0.05:
            raise RuntimeError
        return [2 * item for item in items][luck < 0.1 :]

    outcomes: Counter[str] = Counter()
    gone: list[int] = []
    gate = asyncio.Semaphore(bounds.queue_size + 30)

    def varied(batcher: Batcher[int, int]) -> bool:
        return (
            min(
                outcomes["answered"], outcomes["EngineFailure"], outcomes["DeadlineExceeded"], batcher.dropped
            )
            > 5
        )

    async def caller(batcher: Batcher[int, int], item: int) -> None:
        async with gate:  # so that a slow machine gets the same mixture later, not all callers at once
            await asyncio.sleep(chance.random() * 0.03)
            await one(batcher, item)

    async def one(batcher: Batcher[int, int], item: int) -> None:
        deadline = time.monotonic() + chance.random() * 0.05 if chance.random() < 0.2 else None
        task = asyncio.current_task()
        leaving = (
            asyncio.get_running_loop().call_later(chance.random() * 0.02, task.cancel)
            if task and chance.random() < 0.4
            else None
        )
        try:
            answer = await batcher.submit(item, deadline)
        except PacaError as error:
            outcomes[type(error).__name__] += 1
        except asyncio.CancelledError:
            outcomes["gone"] += 1
            gone.append(item)
        else:
            assert answer.result == 2 * item
            assert item % 10
            outcomes["answered"] += 1
        finally:
            if leaving:
                leaving.cancel()

    async def main() -> int:
        batcher = Batcher(run, bounds, key=key)
        callers = [asyncio.create_task(caller(batcher, item)) for item in range(3000)]
        while (waiting := len(callers) - sum(outcomes.values())) > 400 or not varied(batcher):
            if waiting <= 400:
                callers += [asyncio.create_task(caller(batcher, len(callers) + i)) for i in range(500)]
            await asyncio.sleep(0.005)
        await batcher.close(grace=0.2)
        await asyncio.gather(*callers)
        ran_before = Counter(runs)
        await asyncio.sleep(0.02)
        assert runs == ran_before  # nothing runs after close
        assert (batcher.depth, batcher.in_flight) == (0, 0)
        assert batcher.items == sum(runs.values())
        assert batcher.dropped <= len(gone)
        return len(callers)

    count = asyncio.run(asyncio.wait_for(main(), 120))
    assert sum(outcomes.values()) == count  # one answer each
    assert set(outcomes) <= {
        "answered",
        "gone",
        "EngineFailure",
        "Overloaded",
        "DeadlineExceeded",
        "Draining",
    }
    assert max(runs.values()) <= 2  # once, and once more alone
