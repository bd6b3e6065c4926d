"""Workers that are killed, servers that are stopped, under load: nobody else notices, nothing accepted is
lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time

import httpx
import pytest

from tests.faults.load import Outcome, closed
from tests.serving import alive, post, served

CALLERS = 6


def best(body: bytes) -> str:
    return json.loads(body)["predictions"][0]["label"]


async def until_true(condition, seconds: float) -> float:
    """Seconds it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not happen in time"
        await asyncio.sleep(0.05)
    return time.monotonic() - began


def test_a_killed_worker_costs_its_own_requests_only_and_is_replaced(
    pictures, tiny_repository, count, record
):
    asyncio.run(kill([post(p) for p in pictures], tiny_repository, count(2, 20), record))


async def kill(requests, models, kills, record):
    outcome, until, replaced = Outcome(), asyncio.Event(), []
    with served(models, workers=2) as serving:
        await until_true(lambda: ready(serving) == 2, 60)
        right = {
            best(httpx.post(f"{serving.url}/classify", content=r.partition(b"\r\n\r\n")[2]).content)
            for r in requests
        }
        load = asyncio.create_task(closed(serving.port, requests, CALLERS, until, outcome))
        for _ in range(kills):
            await asyncio.sleep(0.5)
            victim = serving.workers()[0]
            os.kill(victim, signal.SIGKILL)
            replaced.append(
                await until_true(lambda v=victim: v not in serving.workers() and ready(serving) == 2, 60)
            )
        await asyncio.sleep(0.5)
        until.set()
        await load
        assert not any(answer.refused for answer in outcome.answers)
    record(
        kills=kills,
        requests=len(outcome.answers),
        lost=len(outcome.lost),
        slowest_replacement_s=round(max(replaced), 1),
    )
    assert set(outcome.statuses()) <= {0, 200}
    assert len(outcome.lost) <= kills * CALLERS
    assert {best(answer.body) for answer in outcome.of(200)} <= right


def ready(serving) -> float:
    """Processes that say they are ready."""
    try:
        lines = httpx.get(f"{serving.url}/metrics").text.splitlines()
    except httpx.HTTPError:
        return 0
    return next((float(line.split()[-1]) for line in lines if line.startswith("paca_ready ")), 0)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stopping_server_answers_everything_it_accepted(pictures, tiny_repository, count, record, workers):
    requests, slowest, total = [post(p) for p in pictures], 0.0, 0
    for _ in range(count(1, 25)):
        outcome, seconds, first, code, left = asyncio.run(stop(requests, tiny_repository, workers))
        assert first == 503
        assert not outcome.lost
        assert set(outcome.statuses()) <= {0, 200}, [answer.body[:200] for answer in outcome.of(503)][:3]
        assert code == 0
        assert not left
        assert len(outcome.of(200)) > CALLERS
        slowest, total = max(slowest, seconds), total + len(outcome.of(200))
    assert slowest < 30
    record(requests=total, lost=0, slowest_stop_s=round(slowest, 1))


async def stop(requests, models, workers):
    """(outcome of the load, seconds from the signal to the end, what /readyz said first, exit code, processes
    left over)."""
    outcome, until = Outcome(), asyncio.Event()
    with served(models, workers=workers) as serving:
        family = [process.pid for process in serving.family()]
        load = asyncio.create_task(closed(serving.port, requests, CALLERS, until, outcome))
        await asyncio.sleep(1)
        began = time.monotonic()
        serving.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        first = (await asyncio.to_thread(httpx.get, f"{serving.url}/readyz")).status_code
        code = await asyncio.to_thread(serving.process.wait, 40)
        seconds = time.monotonic() - began
        until.set()
        await load
        return outcome, seconds, first, code, [pid for pid in family if alive(pid)]
