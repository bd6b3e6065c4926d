"""More requests than the server can answer: the rest is refused at once, what is accepted is answered in
time, health answers throughout."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager

from tests.faults.load import closed_for, opened, percentile, watched
from tests.serving import Serving, post, served


@contextmanager
def on_a_core_of_its_own(soak: bool) -> Iterator[Serving]:
    """The server; in a soak on the first core, and this process, which makes the load, on the others: else
    the load would eat what it is held against."""
    cores = sorted(os.sched_getaffinity(0))
    apart = soak and len(cores) > 1
    try:
        if apart:
            os.sched_setaffinity(0, cores[:1])  # inherited
        with served(None) as serving:
            if apart:
                os.sched_setaffinity(0, cores[1:])
            yield serving
    finally:
        os.sched_setaffinity(0, cores)


def test_twice_the_capacity(pictures, count, soak, record):
    asyncio.run(scenario([post(p) for p in pictures], count(6, 600), soak, record))


async def scenario(requests, seconds, soak, record):
    with on_a_core_of_its_own(soak) as serving:
        await closed_for(serving.port, requests, 4, 2)
        best = await closed_for(serving.port, requests, 8, min(seconds, 30))
        capacity = len(best.of(200)) / best.seconds
        usual = await opened(serving.port, requests, 0.8 * capacity, min(seconds, 60))
        before, until = serving.rss(), asyncio.Event()
        health = asyncio.create_task(watched(serving.port, until))
        flood = await opened(serving.port, requests, 2 * capacity, seconds)
        until.set()
        grown, pulse = serving.rss() / before - 1, await health
        after = await closed_for(serving.port, requests, 4, 2)

    good, refused = flood.of(200), flood.of(503)
    figures = {
        "capacity_per_s": round(capacity, 1),
        "goodput": round(len(good) / flood.seconds / capacity, 3),
        "refused_p99_ms": round(1000 * percentile(refused, 0.99), 1),
        "accepted_p99_ms": round(1000 * percentile(good, 0.99), 1),
        "usual_p99_ms": round(1000 * percentile(usual.of(200), 0.99), 1),
        "health_max_ms": round(1000 * percentile(pulse, 1.0), 1),
        "rss_growth": round(grown, 3),
    }
    print(figures)
    record(**figures)
    assert set(flood.statuses()) <= {200, 503}
    assert all(b"retry-after: " in answer.headers.lower() for answer in refused)
    assert {answer.status for answer in pulse} == {200}
    assert len(good) > 0.3 * len(best.of(200)) * flood.seconds / best.seconds
    assert not after.lost
    assert after.of(200)
    if soak:
        assert figures["goodput"] >= 0.9
        assert figures["refused_p99_ms"] <= 100
        assert figures["accepted_p99_ms"] <= 2 * figures["usual_p99_ms"]
        assert figures["health_max_ms"] <= 250
        assert grown < 0.05


def test_a_thousand_connections_at_once_and_then_as_usual(pictures, count, soak, record):
    async def burst():
        requests = [post(p) for p in pictures]
        with on_a_core_of_its_own(soak) as serving:
            usual = await closed_for(serving.port, requests, 4, 3)
            spike = await opened(serving.port, requests, 1e6, count(200, 1000) / 1e6)
            assert len(spike.answers) > count(150, 900)
            after = await closed_for(serving.port, requests, 4, 3)
        assert set(spike.statuses()) <= {200, 503}
        assert set(after.statuses()) == {200}
        record(
            spike=spike.statuses(),
            usual_p99_ms=round(1000 * percentile(usual.answers, 0.99)),
            after_p99_ms=round(1000 * percentile(after.answers, 0.99)),
        )
        if soak:
            assert percentile(after.answers, 0.99) <= 2 * percentile(usual.answers, 0.99)

    asyncio.run(burst())
