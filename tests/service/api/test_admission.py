"""Who may work, for how long, and that work nobody waits for stops."""

import asyncio
import time

import pytest

from service.api.admission import Admission, memory_used, run_until_deadline
from service.api.problems import ClientGone
from service.errors import BadImage, DeadlineExceeded, Overloaded


def cgroup(folder, limit: str, current: int, cache: int):
    (folder / "memory.max").write_text(limit)
    (folder / "memory.current").write_text(str(current))
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cache}\nactive_file 7\n")
    return folder


def test_no_more_pictures_than_allowed_are_at_work(tmp_path):
    async def scenario():
        admission = Admission(tmp_path)
        async with admission.work(3), admission.work(3, pictures=2):
            with pytest.raises(Overloaded):
                admission.check(3)
        admission.check(3)
        assert admission.working == 0

    asyncio.run(scenario())


def test_a_request_that_fails_makes_room(tmp_path):
    async def scenario():
        admission = Admission(tmp_path)
        with pytest.raises(BadImage):
            async with admission.work(1):
                raise BadImage("x")
        admission.check(1)


def test_a_request_of_many_pictures_is_served_whole_or_not_at_all(tmp_path):
    async def scenario():
        admission = Admission(tmp_path)
        async with admission.work(17, pictures=16), admission.work(17, pictures=16):
            with pytest.raises(Overloaded):
                async with admission.work(17):
                    pass

    asyncio.run(scenario())

    asyncio.run(scenario())


@pytest.mark.parametrize(("current", "cache", "used"), [(50, 0, 0.5), (95, 30, 0.65), (95, 0, 0.95)])
def test_memory_in_use_leaves_out_what_the_kernel_can_drop(tmp_path, current, cache, used):
    assert memory_used(cgroup(tmp_path, "100", current, cache)) == pytest.approx(used)


def test_without_a_limit_memory_is_no_reason(tmp_path):
    assert memory_used(tmp_path) == 0
    assert memory_used(cgroup(tmp_path, "max", 10**12, 0)) == 0


def test_short_of_memory_nothing_new_is_taken(tmp_path):
    with pytest.raises(Overloaded, match="memory"):
        Admission(cgroup(tmp_path, "100", 91, 0)).check(5)


def caller(leaves_after: float = 60.0):
    async def receive():
        await asyncio.sleep(leaves_after)
        return {"type": "http.disconnect"}

    return receive


def outcome(work, receive, seconds=60.0):
    """(what it returns, whether the work was cancelled)."""
    cancelled = []

    async def watched():
        try:
            return await work
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def scenario():
        try:
            return await run_until_deadline(watched(), receive, time.monotonic() + seconds)
        except Exception as error:
            return type(error)

    return asyncio.run(scenario()), bool(cancelled)


def test_work_that_is_done_is_answered():
    assert outcome(asyncio.sleep(0, "done"), caller()) == ("done", False)


def test_an_error_of_the_work_is_the_answer():
    async def fail():
        raise BadImage("x")

    assert outcome(fail(), caller()) == (BadImage, False)


def test_work_is_cancelled_when_its_caller_leaves():
    assert outcome(asyncio.sleep(60), caller(0.01)) == (ClientGone, True)


def test_work_is_cancelled_when_its_deadline_passes():
    assert outcome(asyncio.sleep(60), caller(), 0.01) == (DeadlineExceeded, True)


def test_cancelling_the_handler_cancels_the_work():
    async def scenario():
        work = asyncio.Event()

        async def wait():
            try:
                await asyncio.sleep(60)
            finally:
                work.set()

        handler = asyncio.create_task(run_until_deadline(wait(), caller(), time.monotonic() + 60))
        await asyncio.sleep(0.01)
        handler.cancel()
        await asyncio.wait((handler,))
        assert handler.cancelled()
        assert work.is_set()

    asyncio.run(scenario())
