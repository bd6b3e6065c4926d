"""Callers that leave: in the middle of their request, after it, while they wait. Their work is dropped and
nobody else notices."""

from __future__ import annotations

import asyncio
import re

import httpx

from tests.faults.load import Outcome, closed
from tests.serving import post, served


def figure(url: str, name: str) -> float:
    """A metric's value, summed over its labels."""
    found = re.findall(
        rf"^{name}(?:{{[^}}]*}})? ([0-9.e+-]+)$", httpx.get(f"{url}/metrics", timeout=60).text, re.M
    )
    return sum(map(float, found))


async def leave(port: int, sent: bytes, after: float) -> None:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        await writer.drain()
        await asyncio.sleep(after)
        writer.transport.abort()
    except OSError:
        pass


def test_the_queued_work_of_callers_who_left_is_not_done(pictures, count, record, soak):
    asyncio.run(scenario([post(p) for p in pictures], count(300, 10_000), record, soak))


async def scenario(requests, total, record, soak):
    outcome, until = Outcome(), asyncio.Event()
    with served(None, instances=1, threads=1, queue_size=128) as serving:
        inferred, memory = figure(serving.url, "paca_inferred_total"), serving.rss()
        load = asyncio.create_task(closed(serving.port, requests, 4, until, outcome))
        left = 0
        while left < total:
            burst = [leave(serving.port, requests[i % len(requests)], 0.01) for i in range(60)]
            burst += [leave(serving.port, requests[0][: 50 * i], 0.0) for i in range(1, 11)]
            await asyncio.gather(*burst)
            left += 60
            await asyncio.sleep(0.2)
        until.set()
        await load
        wasted = figure(serving.url, "paca_inferred_total") - inferred - len(outcome.of(200))
        grown = serving.rss() - memory
        cancelled = figure(serving.url, "paca_cancelled_total")
        assert httpx.get(f"{serving.url}/readyz", timeout=60).status_code == 200
    record(
        left=left,
        inferred_all_the_same=wasted,
        part=round(wasted / left, 4),
        rss_growth_mb=round(grown / 2**20, 1),
    )
    assert set(outcome.statuses()) == {200}
    assert cancelled >= 0.9 * left
    assert wasted <= 0.3 * left
    if soak:
        assert wasted <= 0.05 * left
        assert grown < 50 * 2**20
