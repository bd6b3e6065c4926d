"""The batcher's promise, sentence by sentence (numbers as in its docstring). All of it at once:
test_batcher_fuzz.py."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from service.batcher import Answer, Batcher, Bounds, Counters, Room
from service.errors import BadArtifact, DeadlineExceeded, Draining, EngineFailure, Overloaded


class Doubler:
    """Stands for the engine: item → 2 * item. Remembers its runs; `open` unset makes it busy; `bad` items
    raise."""

    def __init__(self, bad: dict[int, Exception] | None = None, seconds: float = 0.0) -> None:
        self.runs: list[list[int]] = []
        self.open = threading.Event()
        self.open.set()
        self.bad = bad or {}
        self.seconds = seconds

    def __call__(self, items: list[int]) -> list[int]:
        self.runs.append(items)
        assert self.open.wait(10)
        if self.seconds:
            time.sleep(self.seconds)
        for item in items:
            if item in self.bad:
                raise self.bad[item]
        return [2 * item for item in items]

    @contextmanager
    def busy(self) -> Iterator[None]:
        self.open.clear()
        try:
            yield
        finally:
            self.open.set()


def go(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 30))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def occupied(batcher: Batcher[int, int], engine: Doubler) -> asyncio.Task[Answer[int]]:
    """A first item on its way through a busy engine, so that what comes next has to wait."""
    runs = len(engine.runs)
    task = asyncio.create_task(batcher.submit(0))
    await until(lambda: len(engine.runs) == runs + 1)
    return task


def test_1_every_item_gets_its_own_row() -> None:
    async def main() -> None:
        batcher = Batcher(Doubler(), Bounds(max_batch=7))
        answers = await asyncio.gather(*(batcher.submit(i) for i in range(50)))
        assert [answer.result for answer in answers] == [2 * i for i in range(50)]
        assert (batcher.items, batcher.depth, batcher.in_flight) == (50, 0, 0)

    go(main)


def test_2_a_run_holds_at_most_max_batch_items_in_the_order_they_came() -> None:
    async def main() -> None:
        engine = Doubler()
        batcher = Batcher(engine, Bounds(max_batch=3))
        with engine.busy():
            first = await occupied(batcher, engine)
            rest = [asyncio.create_task(batcher.submit(i)) for i in range(1, 9)]
            await until(lambda: batcher.depth == 8)
        answers = await asyncio.gather(first, *rest)
        assert engine.runs == [[0], [1, 2, 3], [4, 5, 6], [7, 8]]
        assert [answer.batch_size for answer in answers] == [1, 3, 3, 3, 3, 3, 3, 2, 2]

    go(main)


def test_2_only_items_with_the_same_key_share_a_run_and_the_oldest_goes_first() -> None:
    async def main() -> None:
        engine = Doubler()
        batcher = Batcher(engine, Bounds(max_batch=3), key=lambda item: item % 2)
        with engine.busy():
            first = await occupied(batcher, engine)
            rest = [asyncio.create_task(batcher.submit(i)) for i in (1, 2, 3, 4, 5, 7)]
            await until(lambda: batcher.depth == 6)
        answers = await asyncio.gather(first, *rest)
        assert engine.runs == [[0], [1, 3, 5], [2, 4], [7]]
        assert [answer.result for answer in answers] == [0, 2, 4, 6, 8, 10, 14]

    go(main)


def test_3_an_item_does_not_wait_while_an_instance_is_idle() -> None:
    async def main() -> None:
        engine = Doubler()
        batcher = Batcher(engine, Bounds(max_batch=8, instances=2))
        with engine.busy():
            first = await occupied(batcher, engine)
            second = asyncio.create_task(batcher.submit(1))
            await until(lambda: len(engine.runs) == 2)  # while the first still runs
            third = asyncio.create_task(batcher.submit(2))
            await until(lambda: batcher.depth == 1)
            assert engine.runs == [[0], [1]]
            assert batcher.in_flight == 2
        await asyncio.gather(first, second, third)
        assert engine.runs == [[0], [1], [2]]

    go(main)


def test_3_max_wait_lets_a_run_fill_and_a_full_one_goes_at_once() -> None:
    async def main() -> None:
        engine = Doubler()
        patient = Batcher(engine, Bounds(max_batch=2, max_wait=20))
        first = asyncio.create_task(patient.submit(1))
        await asyncio.sleep(0.05)
        assert engine.runs == []
        await asyncio.gather(first, patient.submit(2))
        assert engine.runs == [[1, 2]]
        short = Batcher(engine, Bounds(max_batch=2, max_wait=0.05))
        answer = await short.submit(3)
        assert answer.queue_ms >= 49
        assert engine.runs == [[1, 2], [3]]

    go(main)


def test_3_a_full_run_does_not_wait_behind_another_key_that_waits_for_company() -> None:
    async def main() -> None:
        engine = Doubler()
        batcher = Batcher(engine, Bounds(max_batch=2, max_wait=20), key=lambda item: item % 2)
        odd = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0.01)
        await asyncio.gather(batcher.submit(2), batcher.submit(4))
        assert engine.runs == [[2, 4]]
        await batcher.submit(3)
        assert (await odd).result == 2
        assert engine.runs == [[2, 4], [1, 3]]

    go(main)


def test_3_batchers_that_share_room_together_run_no_more_than_fits_and_take_turns() -> None:
    async def main() -> None:
        room = Room(2)
        engines = [Doubler(), Doubler(), Doubler()]
        batchers = [Batcher(e, Bounds(instances=2), share=room.share(1, 2)) for e in engines]
        with engines[0].busy(), engines[1].busy(), engines[2].busy():
            tasks = [asyncio.create_task(b.submit(i)) for i in range(3) for b in batchers]
            await until(lambda: sum(len(e.runs) for e in engines) == 2)
            await asyncio.sleep(0.05)
            assert (room.taken, [len(e.runs) for e in engines]) == (2, [1, 1, 0])
            engines[0].open.set()
            await until(lambda: len(engines[2].runs) == 1)  # its turn, before the first one's second run
        await asyncio.gather(*tasks)
        assert [e.runs for e in engines] == [[[0], [1], [2]]] * 3
        assert room.taken == 0

    go(main)


def test_3_who_waits_for_room_and_then_has_nothing_left_to_run_holds_up_nobody() -> None:
    async def main() -> None:
        room = Room(2)
        small, large = Doubler(), Doubler()
        first = Batcher(small, Bounds(instances=2), share=room.share(1, 2))
        second = Batcher(large, share=room.share(2, 1))
        with small.busy():
            running = await occupied(first, small)
            leaving = asyncio.create_task(second.submit(1))
            await until(lambda: second.depth == 1)
            behind = asyncio.create_task(first.submit(2))
            await until(lambda: first.depth == 1)  # it asked later than the one that needs both cores
            leaving.cancel()
            await until(lambda: len(small.runs) == 2)
        await asyncio.gather(running, behind)
        assert large.runs == []
        assert (await second.submit(3)).result == 6

    go(main)


def test_3_a_batcher_alone_uses_all_its_instances_whatever_the_room() -> None:
    async def main() -> None:
        engine = Doubler()
        room = Room(1)
        batcher = Batcher(engine, Bounds(instances=3), share=room.share(2, 3))
        with engine.busy():
            tasks = [asyncio.create_task(batcher.submit(i)) for i in range(3)]
            await until(lambda: len(engine.runs) == 3)
        await asyncio.gather(*tasks)
        await batcher.close()
        assert room.cores == 1

    go(main)


def test_4_a_caller_that_leaves_changes_nothing_for_others_and_its_item_is_never_run() -> None:
    async def main() -> None:
        engine = Doubler()
        batcher = Batcher(engine, Bounds(max_batch=4))
        with engine.busy():
            running = await occupied(batcher, engine)
            waiting = [asyncio.create_task(batcher.submit(i)) for i in range(1, 6)]
            await until(lambda: batcher.depth == 5)
            running.cancel()
            waiting[1].cancel()
            waiting[3].cancel()
            await until(lambda: batcher.depth == 3)
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert [a.result if isinstance(a, Answer) else type(a) for a in answers] == [
            2,
            asyncio.CancelledError,
            6,
            asyncio.CancelledError,
            10,
        ]
        assert engine.runs == [[0], [1, 3, 5]]
        assert batcher.dropped == 2

    go(main)


def test_5_a_failing_run_fails_only_the_item_that_breaks_it() -> None:
    async def main() -> None:
        engine = Doubler(bad={3: RuntimeError("CUDA is unhappy")})
        batcher = Batcher(engine, Bounds(max_batch=4))
        answers = await asyncio.gather(*(batcher.submit(i) for i in range(1, 7)), return_exceptions=True)
        assert [type(a) for a in answers] == [Answer, Answer, EngineFailure, Answer, Answer, Answer]
        assert "CUDA" not in str(answers[2])
        assert engine.runs == [[1, 2, 3, 4], [1], [2], [3], [4], [5, 6]]
        assert batcher.retried == 4

    go(main)


def test_5_an_item_that_fails_alone_is_run_once_more() -> None:
    async def main() -> None:
        engine = Doubler(bad={3: RuntimeError()})
        batcher = Batcher(engine)
        with pytest.raises(EngineFailure):
            await batcher.submit(3)
        assert engine.runs == [[3], [3]]
        engine.bad.clear()
        assert (await batcher.submit(3)).result == 6

    go(main)


def test_5_an_error_of_ours_passes_through_and_only_to_its_own_item() -> None:
    async def main() -> None:
        engine = Doubler(bad={2: BadArtifact("no")})
        batcher = Batcher(engine, Bounds(max_batch=3))
        answers = await asyncio.gather(*(batcher.submit(i) for i in range(1, 4)), return_exceptions=True)
        assert [type(a) for a in answers] == [Answer, BadArtifact, Answer]
        with pytest.raises(BadArtifact, match="no"):
            await batcher.submit(2)
        assert engine.runs[-1] == [2]
        assert engine.runs.count([2]) == 2

    go(main)


def test_5_an_error_of_ours_keeps_its_cause() -> None:
    async def main() -> None:
        error = BadArtifact("no")
        error.__cause__ = OSError("disk")
        with pytest.raises(BadArtifact) as caught:
            await Batcher(Doubler(bad={2: error})).submit(2)
        assert caught.value.__cause__ is error.__cause__

    go(main)


def test_6_a_wrong_number_of_results_is_a_failure() -> None:
    async def main() -> None:
        batcher = Batcher[int, int](
            lambda items: items if len(items) == 1 else items[1:], Bounds(max_batch=4)
        )
        answers = await asyncio.gather(*(batcher.submit(i) for i in range(4)))
        assert [answer.result for answer in answers] == [0, 1, 2, 3]
        with pytest.raises(EngineFailure):
            await Batcher[int, int](lambda items: [], Bounds(max_batch=4)).submit(0)

    go(main)


def no_thread(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_6_where_no_thread_can_be_started_the_item_is_answered_and_the_instance_is_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        engine = Doubler()
        batcher = Batcher(engine, Bounds(max_batch=2))
        with monkeypatch.context() as limited:
            limited.setattr(threading.Thread, "start", no_thread)
            for failure in await asyncio.gather(batcher.submit(1), batcher.submit(2), return_exceptions=True):
                assert isinstance(failure, EngineFailure)
                assert "can't start new thread" in str(failure.__cause__)
        assert (batcher.in_flight, batcher.depth, batcher.counters) == (0, 0, Counters(retried=2, failed=2))
        assert (await batcher.submit(3)).result == 6
        assert engine.runs == [[3]]  # what was given up is not run late
        await batcher.close()

    go(main)


def test_6_where_no_further_thread_can_be_started_those_that_run_take_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        engine = Doubler()
        batcher = Batcher(engine, Bounds(instances=2))
        with engine.busy(), monkeypatch.context() as limited:
            first = await occupied(batcher, engine)
            limited.setattr(threading.Thread, "start", no_thread)
            second = asyncio.create_task(batcher.submit(1))
            await until(lambda: batcher.depth == 1)
        assert [(await task).result for task in (first, second)] == [0, 2]
        assert batcher.counters == Counters(runs=2, items=2)
        await batcher.close()

    go(main)


def test_7_beyond_queue_size_submit_raises_at_once_and_says_when_to_come_back() -> None:
    async def main() -> None:
        engine = Doubler(seconds=0.1)
        batcher = Batcher(engine, Bounds(max_batch=2, queue_size=4))
        await batcher.submit(0)  # measures a run: 0.1 s an item
        with engine.busy():
            first = await occupied(batcher, engine)
            rest = [asyncio.create_task(batcher.submit(i)) for i in range(1, 5)]
            await until(lambda: batcher.depth == 4)
            with pytest.raises(Overloaded) as caught:
                await batcher.submit(5)
            assert 0.45 < caught.value.retry_after < 2  # five items ahead
            assert caught.value.details == {"limit": "queue_size", "value": 4}
            rest.pop().cancel()  # whoever leaves makes room
            await until(lambda: batcher.depth == 3)
            rest.append(asyncio.create_task(batcher.submit(6)))
        assert [a.result for a in await asyncio.gather(first, *rest)] == [0, 2, 4, 6, 12]
        assert batcher.rejected == 1

    go(main)


def test_7_an_idle_instance_counts_as_room() -> None:
    async def main() -> None:
        batcher = Batcher(Doubler(), Bounds(max_batch=4, queue_size=4))
        answers = await asyncio.gather(*(batcher.submit(i) for i in range(9)), return_exceptions=True)
        assert [type(a) for a in answers] == [Answer] * 8 + [Overloaded]

    go(main)


def test_8_a_deadline_that_passes_is_answered_then_and_the_waiting_item_is_not_run() -> None:
    async def main() -> None:
        engine = Doubler()
        batcher = Batcher(engine, Bounds(max_batch=4))
        with engine.busy():
            running = asyncio.create_task(batcher.submit(1, time.monotonic() + 0.05))
            await until(lambda: len(engine.runs) == 1)
            waiting = asyncio.create_task(batcher.submit(2, time.monotonic() + 0.05))
            patient = asyncio.create_task(batcher.submit(3, time.monotonic() + 20))
            for late in (running, waiting):  # while the engine still hangs
                with pytest.raises(DeadlineExceeded):
                    await late
        assert (await patient).result == 6
        assert engine.runs == [[1], [3]]
        assert batcher.expired == 2

    go(main)


def test_8_a_deadline_already_past_is_never_run() -> None:
    async def main() -> None:
        engine = Doubler()
        for max_batch in (1, 4):
            with pytest.raises(DeadlineExceeded):
                await Batcher(engine, Bounds(max_batch=max_batch)).submit(1, time.monotonic() - 1)
        assert engine.runs == []

    go(main)


def test_9_close_finishes_what_runs_and_what_waits_and_refuses_what_comes() -> None:
    async def main() -> None:
        engine = Doubler()
        batcher = Batcher(engine, Bounds(max_batch=2, max_wait=20))
        with engine.busy():
            tasks = [asyncio.create_task(batcher.submit(i)) for i in range(3)]
            await until(lambda: len(engine.runs) == 1)
            closing = asyncio.create_task(batcher.close())
            await asyncio.sleep(0)
            with pytest.raises(Draining):
                await batcher.submit(9)
            assert not closing.done()
        await closing
        assert all(task.done() for task in tasks)
        assert [task.result().result for task in tasks] == [0, 2, 4]
        assert engine.runs == [[0, 1], [2]]
        await batcher.close()  # twice does no harm

    go(main)


def test_9_after_the_grace_what_still_waits_is_answered_draining() -> None:
    async def main() -> None:
        engine = Doubler()
        batcher = Batcher(engine, Bounds(max_batch=1))
        with engine.busy():
            running = await occupied(batcher, engine)
            waiting = asyncio.create_task(batcher.submit(1))
            await until(lambda: batcher.depth == 1)
            closing = asyncio.create_task(batcher.close(grace=0.02))
            with pytest.raises(Draining):
                await waiting
            assert not closing.done()
        await closing
        assert (await running).result == 0
        assert engine.runs == [[0]]

    go(main)


def test_timings_say_how_long_an_item_waited_and_ran() -> None:
    async def main() -> None:
        engine = Doubler(seconds=0.05)
        batcher = Batcher(engine, Bounds(max_batch=2))
        first, second = asyncio.create_task(batcher.submit(1)), None
        await until(lambda: len(engine.runs) == 1)
        second = await batcher.submit(2)
        assert (await first).queue_ms < 1000
        assert second.inference_ms >= 49
        assert second.queue_ms >= 20

    go(main)


def test_it_serves_one_event_loop_after_another() -> None:
    batcher = Batcher(Doubler(), Bounds(max_batch=2))
    for i in range(3):
        assert asyncio.run(batcher.submit(i)).result == 2 * i


@pytest.mark.parametrize("bad", [{"max_batch": 0}, {"queue_size": 0}, {"instances": 0}, {"max_wait": -1.0}])
def test_impossible_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least"):
        Batcher(Doubler(), Bounds(**bad))
