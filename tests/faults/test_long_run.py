"""Many requests of every kind, a fifth of them bad: no 5xx, no leak, no new metric series."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import re

import httpx

from tests.serving import Connection, post, served

CALLERS = 8


def mixed(pictures: list[bytes]) -> list[bytes]:
    """A thousand requests, in a fixed random order."""
    draw = random.Random(7)

    def body(path: str, kind: str, content: bytes) -> bytes:
        return (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: "
            f"{len(content)}\r\n\r\n".encode()
            + content
        )

    def good() -> bytes:
        picture = draw.choice(pictures)
        form = draw.randrange(5)
        if form == 0:
            return body(
                "/classify",
                "application/json",
                json.dumps({"image": base64.b64encode(picture).decode()}).encode(),
            )
        if form == 1:
            part = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + picture + b"\r\n"
            return body("/classify?top_k=2", "multipart/form-data; boundary=b", part * 2 + b"--b--\r\n")
        if form == 2:
            return post(
                picture,
                f"/explain?render=overlay&size=64&method={draw.choice(['cam', 'focus', 'fine', 'grouping'])}",
            )
        return post(picture)

    def bad() -> bytes:
        picture = draw.choice(pictures)
        return draw.choice(
            [
                post(picture[: draw.randrange(1, len(picture))]),
                post(draw.randbytes(500)),
                post(b""),
                post(picture, f"/classify?model=m{draw.random()}"),
                post(picture, f"/classify?p{draw.random()}=1"),
                body("/classify", "application/json", b"{"),
                body("/classify", "multipart/form-data; boundary=b", b"--b\r\n"),
                f"GET /path/{draw.random()} HTTP/1.1\r\nHost: x\r\nX-Request-ID: "
                f"{draw.random()}\r\n\r\n".encode(),
            ]
        )

    return [bad() if draw.random() < 0.2 else good() for _ in range(1000)]


def test_many_mixed_requests_leave_nothing_behind(tiny_repository, pictures, count, record, soak):
    asyncio.run(
        scenario(tiny_repository, mixed(pictures), count(600, 5_000), count(600, 95_000), record, soak)
    )


async def scenario(models, requests, first, then, record, soak):
    statuses: dict[int, int] = {}

    async def send(port: int, number: int, offset: int) -> None:
        async def call(caller: int) -> None:
            connection = Connection(port)
            for i in range(caller, number, CALLERS):
                answer = await connection.ask(requests[(offset + i) % len(requests)])
                statuses[answer.status] = statuses.get(answer.status, 0) + 1
            connection.close()

        await asyncio.gather(*(call(caller) for caller in range(CALLERS)))

    def state(serving) -> tuple[int, int, int, set[str]]:
        server = serving.family()[0]
        series = set(re.findall(r"^(paca_[^ ]+) ", httpx.get(f"{serving.url}/metrics").text, re.M))
        return serving.rss(), server.num_fds(), server.num_threads(), series

    with served(models) as serving:
        await send(serving.port, first, 0)
        await asyncio.sleep(1)
        rss, fds, threads, series = state(serving)
        await send(serving.port, then, first)
        await asyncio.sleep(1)
        rss_after, fds_after, threads_after, series_after = state(serving)
    grown = rss_after - rss
    record(
        statuses=statuses,
        rss_growth_mb=round(grown / 2**20, 1),
        rss_growth=round(grown / rss, 3),
        fds=fds_after - fds,
        threads=threads_after - threads,
    )
    assert all(200 <= status < 500 for status in statuses), statuses
    assert series_after == series
    assert abs(fds_after - fds) <= 2
    assert abs(threads_after - threads) <= 2
    if soak:
        assert grown < 50 * 2**20
        assert grown < 0.05 * rss
