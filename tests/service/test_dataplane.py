"""What every door relies on: the model, its room, the deadline, work that nobody waits for."""

import asyncio
import time

from service.dataplane import Call, run_until_deadline
from service.errors import BadImage, ClientGone, DeadlineExceeded


def caller(leaves_after: float = 60.0):
    async def gone():
        await asyncio.sleep(leaves_after)

    return gone


def outcome(work, gone, seconds=60.0):
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
            return await run_until_deadline(watched(), Call(deadline=time.monotonic() + seconds, gone=gone))
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

        handler = asyncio.create_task(
            run_until_deadline(wait(), Call(deadline=time.monotonic() + 60, gone=caller()))
        )
        await asyncio.sleep(0.01)
        handler.cancel()
        await asyncio.wait((handler,))
        assert handler.cancelled()
        assert work.is_set()

    asyncio.run(scenario())
