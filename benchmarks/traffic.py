"""What the benchmarks send and how: one photo in the two usual forms, single exchanges, closed loops with the
server's CPU time, and an open loop.

An open loop sends by the clock, whether or not answers come: its latencies count from when a request was due,
so a server that falls behind shows it.
"""

from __future__ import annotations

import asyncio
import io
import random
import socket
import time
from dataclasses import dataclass, field

from PIL import Image
from processes import Server

from service.load import LoadResult, closed_loop

BOUNDARY = "paca-benchmark-boundary"


def photo(size: tuple[int, int] = (640, 480)) -> bytes:
    """A real photo (scikit-image's `coffee`) as JPEG, quality 85, about 45 kB."""
    from skimage import data

    buffer = io.BytesIO()
    Image.fromarray(data.coffee()).resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def body(data: bytes, form: str, field: str) -> tuple[bytes, str]:
    """(body, Content-Type) of a photo, as "raw" bytes or as "multipart" with one file part named `field`."""
    if form == "raw":
        return data, "image/jpeg"
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; '
        'filename="photo.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    )
    return (
        head.encode() + data + f"\r\n--{BOUNDARY}--\r\n".encode(),
        f"multipart/form-data; boundary={BOUNDARY}",
    )


def request(port: int, path: str, data: bytes, form: str = "raw", field: str = "file") -> bytes:
    """The whole HTTP/1.1 request."""
    content, kind = body(data, form, field)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {kind}\r\nContent-Length: "
        f"{len(content)}\r\n\r\n"
    )
    return head.encode() + content


def exchange(port: int, message: bytes, seconds: float = 30.0) -> tuple[int, bytes]:
    """(status, body) of one request on a connection of its own."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as sock:
        sock.sendall(message.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
        reader = sock.makefile("rb")
        status = int(reader.readline().split()[1])
        headers = {}
        while line := reader.readline().strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        return status, reader.read(
            int(headers["content-length"])
        ) if "content-length" in headers else reader.read()


@dataclass(frozen=True)
class Cell:
    """One measurement: requests a second, latencies in milliseconds, answers that were not 200, and the
    server's CPU milliseconds per answer."""

    rate: float
    p50: float
    p99: float
    errors: int
    cpu_ms: float


def closed(server: Server, message: bytes, *, connections: int, seconds: float, warm_up: int = 10) -> Cell:
    """`connections` clients that each send the next request when the last is answered."""
    asyncio.run(
        closed_loop("127.0.0.1", server.port, message, connections=connections, seconds=0.0, warm_up=warm_up)
    )
    before = server.cpu_seconds()
    result = asyncio.run(
        closed_loop("127.0.0.1", server.port, message, connections=connections, seconds=seconds, warm_up=0)
    )
    return _cell(result, server.cpu_seconds() - before)


def open_loop(server: Server, message: bytes, *, rate: float, seconds: float, seed: int = 1) -> Cell:
    """`rate` requests a second at random (Poisson) times, each on a free kept-alive connection or a new
    one."""
    before = server.cpu_seconds()
    sent = asyncio.run(_Open(server.port, message).run(rate, seconds, random.Random(seed)))
    return _cell(sent, server.cpu_seconds() - before)


def _cell(result: LoadResult, cpu: float) -> Cell:
    answers = sum(result.statuses.values())
    errors = answers - result.statuses.get(200, 0) + result.failures
    return Cell(
        result.rate, result.percentile(0.5), result.percentile(0.99), errors, 1000 * cpu / max(1, answers)
    )


@dataclass
class _Open:
    port: int
    message: bytes
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    failures: int = 0

    async def run(self, rate: float, seconds: float, chance: random.Random) -> LoadResult:
        began = due = time.monotonic()
        tasks = []
        while (due := due + chance.expovariate(rate)) < began + seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.append(asyncio.create_task(self._one(due)))
        await asyncio.gather(*tasks)
        for _, writer in self.idle:
            writer.close()
        return LoadResult(
            time.monotonic() - began, tuple(sorted(self.latencies)), self.statuses, self.failures
        )

    async def _one(self, due: float) -> None:
        try:
            async with asyncio.timeout(30):
                while self.idle and self.idle[-1][0].at_eof():
                    self.idle.pop()[1].close()
                reader, writer = (
                    self.idle.pop() if self.idle else await asyncio.open_connection("127.0.0.1", self.port)
                )
                writer.write(self.message)
                lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
                length = next((int(line[15:]) for line in lines if line.startswith("content-length:")), 0)
                await reader.readexactly(length)
        except (OSError, EOFError, ValueError):
            self.failures += 1
            return
        self.latencies.append(time.monotonic() - due)
        status = int(lines[0].split()[1])
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if "connection: close" in lines:
            writer.close()
        else:
            self.idle.append((reader, writer))
