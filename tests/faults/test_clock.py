"""The time of day jumps under load, in a real server under libfaketime: no deadline fires, no time is
negative, nobody is refused."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx

from tests.conftest import unavailable
from tests.faults.load import Outcome, closed, watched
from tests.serving import post, served

LIBRARY = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
JUMPS = ("+1d", "-1d", "+400d", "+0d")  # against the true time of day


def test_jumps_of_the_wall_clock_disturb_nobody(pictures, count, record, tmp_path, monkeypatch):
    if LIBRARY is None:
        unavailable("libfaketime (Debian: apt-get install libfaketime)")
    clock = tmp_path / "clock"
    clock.write_text("+0d\n")
    for name, value in {
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        # else it stretches the interpreter's own waits of 5 ms to a second and more
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",
    }.items():
        monkeypatch.setenv(name, value)
    asyncio.run(scenario([post(p) for p in pictures], clock, count(1, 20), record))


async def day(url: str) -> str:
    """The day that the server believes it is."""
    answer = await asyncio.to_thread(httpx.get, f"{url}/healthz", timeout=60)
    return answer.headers["date"][:16]


async def scenario(requests, clock, rounds, record):
    outcome, until, jumps = Outcome(), asyncio.Event(), JUMPS * rounds
    with served(None, deadline_ms=10_000) as serving:
        load = asyncio.create_task(closed(serving.port, requests, 4, until, outcome))
        health = asyncio.create_task(watched(serving.port, until))
        for jump in jumps:
            before = await day(serving.url)
            clock.write_text(f"{jump}\n")
            while await day(serving.url) == before:
                await asyncio.sleep(0.2)
            await asyncio.sleep(0.5)
        until.set()
        await load
        pulse = await health
        metrics = httpx.get(f"{serving.url}/metrics").text
    timings = [
        value for answer in outcome.of(200) for value in json.loads(answer.body)["timings_ms"].values()
    ]
    record(jumps=len(jumps), requests=len(outcome.answers), statuses=outcome.statuses())
    assert set(outcome.statuses()) == {200}
    assert {answer.status for answer in pulse} == {200}
    assert min(timings) >= 0
    assert max(timings) < 60_000
    assert "paca_ready 1.0" in metrics
