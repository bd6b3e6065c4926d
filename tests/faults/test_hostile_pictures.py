"""Damaged, contradictory and costly files of every format, sent to a running server: refused in time, and
nothing else notices."""

from __future__ import annotations

import asyncio
import io
import random
import struct
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from service.images.formats import IMAGE_FORMATS
from tests.service.images.files import lossless_webp_bomb, riff
from tests.serving import Connection, post, served

CALLERS = 4
CLAIM = 30_000  # pixels a side, which no file here has
ALLOWED = {200, 400, 413, 415, 422, 503}


def good(side: int = 96) -> list[bytes]:
    """A file of each format, and of the ways in which some of them differ inside."""
    picture = Image.linear_gradient("L").resize((side, side)).convert("RGB")
    found = []
    for row in IMAGE_FORMATS:
        row.prepare()
        for how in {"TIFF": [{}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}]}.get(row.name, [{}]):
            buffer = io.BytesIO()
            picture.save(buffer, row.plugin, **how)
            found.append(buffer.getvalue())
    return found


def claims(files: list[bytes]) -> list[bytes]:
    """Files whose size, as their header says it, is far beyond what they hold."""
    said = [struct.pack(order + kind, 96) for order in "<>" for kind in "IH"]
    huge = [struct.pack(order + kind, CLAIM) for order in "<>" for kind in "IH"]
    return [data.replace(small, large) for data in files for small, large in zip(said, huge, strict=True)]


def mutated(draw: random.Random, data: bytes) -> bytes:
    """Some bytes changed, removed or repeated, or the end cut off."""
    broken = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        if len(broken) < 4:
            break
        at, length = draw.randrange(len(broken)), draw.randint(1, 30)
        match draw.choice(["change", "change", "remove", "repeat", "cut"]):
            case "change":
                broken[at : at + length] = draw.randbytes(length)
            case "remove":
                del broken[at : at + length]
            case "repeat":
                broken[at:at] = broken[at : at + length] * draw.randint(1, 50)
            case "cut":
                del broken[max(at, 1) :]
    return bytes(broken) or b"\0"


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
def test_hostile_pictures_are_refused_in_time_and_nobody_else_notices(tiny_repository, count, record, soak):
    draw, files = random.Random(11), good()
    hostile = [
        *claims(files),
        lossless_webp_bomb(1024),
        riff((b"VP8L", b"\x2f" + (12_999 | 12_999 << 14).to_bytes(4, "little") + bytes(8))),
    ]
    bodies = [mutated(draw, draw.choice(files)) for _ in range(count(300, 20_000))] + hostile * count(1, 20)
    draw.shuffle(bodies)
    asyncio.run(scenario(tiny_repository, bodies, files, record, soak))


async def scenario(models: Path, bodies: list[bytes], files: list[bytes], record, soak) -> None:
    statuses: Counter[int] = Counter()
    slowest = health = 0.0
    before = most = 0
    with served(models) as serving:

        async def call(caller: int) -> None:
            nonlocal slowest
            connection = Connection(serving.port)
            for body in bodies[caller::CALLERS]:
                began = time.monotonic()
                statuses[(await connection.ask(post(body))).status] += 1
                slowest = max(slowest, time.monotonic() - began)
            connection.close()

        async def watch() -> None:
            nonlocal health, most
            connection = Connection(serving.port)
            while True:
                began = time.monotonic()
                assert (await connection.ask(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")).status == 200
                health, most = max(health, time.monotonic() - began), max(most, serving.rss())
                await asyncio.sleep(0.05)

        connection = Connection(serving.port)
        assert [(await connection.ask(post(data))).status for data in files] == [200] * len(files)
        before = most = serving.rss()
        watching = asyncio.create_task(watch())
        await asyncio.gather(*(call(caller) for caller in range(CALLERS)))
        watching.cancel()
        await asyncio.wait([watching])
        assert watching.cancelled()
        assert [(await connection.ask(post(data))).status for data in files] == [200] * len(files)
        connection.close()
    record(
        files=len(bodies),
        statuses=dict(sorted(statuses.items())),
        slowest_seconds=round(slowest, 2),
        health_ms=round(1000 * health),
        memory_mb=[round(before / 2**20), round(most / 2**20)],
    )
    assert set(statuses) <= ALLOWED
    assert statuses[503] < len(bodies) / 100
    assert most - before < 500 * 2**20
    if soak:
        assert slowest <= 4
        assert health <= 0.25
