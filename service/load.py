"""A small closed-loop load generator for `paca bench URL` and the benchmarks: keep-alive connections that
each send the next request when the last is answered.

Plain asyncio streams: the generator must cost less than what it measures. Sends traffic only where it is told
to, for a bounded time.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from .errors import PacaError


@dataclass(frozen=True)
class LoadResult:
    """seconds: measured time; latencies: of each answered request, seconds, sorted; statuses: how often each
    was answered; failures: broken connections."""

    seconds: float
    latencies: tuple[float, ...]
    statuses: dict[int, int]
    failures: int

    @property
    def rate(self) -> float:
        """Answers with status 200 a second."""
        return self.statuses.get(200, 0) / self.seconds

    def percentile(self, q: float) -> float:
        """Latency in milliseconds below which a share `q` of the answers came; NaN without any."""
        return (
            1000 * self.latencies[min(int(q * len(self.latencies)), len(self.latencies) - 1)]
            if self.latencies
            else float("nan")
        )


def request_bytes(url: str, body: bytes, content_type: str) -> tuple[str, int, bytes]:
    """(host, port, the whole HTTP/1.1 request) of a POST."""
    parts = urlsplit(url if "//" in url else f"http://{url}")
    if parts.scheme != "http" or not parts.hostname:
        raise PacaError(f"{url} is no http:// address of a server")
    path = (parts.path or "/classify") + (f"?{parts.query}" if parts.query else "")
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: {content_type}\r\nContent-Length: "
        f"{len(body)}\r\n\r\n"
    )
    return parts.hostname, parts.port or 80, head.encode() + body


async def closed_loop(
    host: str, port: int, request: bytes, *, connections: int, seconds: float, warm_up: int = 50
) -> LoadResult:
    """Keeps `connections` requests in flight for `seconds`, after `warm_up` requests that do not count."""
    latencies: list[float] = []
    statuses: dict[int, int] = {}
    failures = 0
    await _client(host, port, request, count=warm_up)
    began = time.monotonic()
    end = began + seconds

    async def loop() -> None:
        nonlocal failures
        while time.monotonic() < end:
            try:
                for status, latency in await _client(host, port, request, until=end):
                    statuses[status] = statuses.get(status, 0) + 1
                    latencies.append(latency)
            except (OSError, EOFError, ValueError):
                failures += 1
                await asyncio.sleep(0.01)

    await asyncio.gather(*(loop() for _ in range(connections)))
    return LoadResult(time.monotonic() - began, tuple(sorted(latencies)), statuses, failures)


async def _client(
    host: str, port: int, request: bytes, *, until: float = float("inf"), count: int | None = None
) -> list[tuple[int, float]]:
    reader, writer = await asyncio.open_connection(host, port)
    answers: list[tuple[int, float]] = []
    try:
        while time.monotonic() < until and (count is None or len(answers) < count):
            sent = time.monotonic()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.decode("latin-1").lower().split("\r\n")
            await _skip_body(reader, lines)
            answers.append((int(lines[0].split()[1]), time.monotonic() - sent))
            if "connection: close" in lines:
                break
    finally:
        writer.close()
    return answers


async def _skip_body(reader: asyncio.StreamReader, head: list[str]) -> None:
    """Reads an answer's body to its end. head: its lines, lower case."""
    if any(line.startswith("transfer-encoding:") and line.endswith("chunked") for line in head):
        while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
            await reader.readexactly(size + 2)
        while await reader.readuntil(b"\r\n") != b"\r\n":
            pass  # trailers
    else:
        await reader.readexactly(
            next((int(line[15:]) for line in head if line.startswith("content-length:")), 0)
        )
