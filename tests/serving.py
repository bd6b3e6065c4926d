"""`paca serve` in a process of its own, and a client light enough to load it. For tests that need real
sockets, signals and crashes."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil


@dataclass
class Serving:
    """A running server. printed: the lines it greeted with."""

    process: subprocess.Popen
    port: int
    printed: list[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def workers(self) -> list[int]:
        """Process ids of its workers (not of multiprocessing's resource tracker)."""
        return sorted(
            p.pid
            for p in psutil.Process(self.process.pid).children()
            if alive(p.pid) and any("spawn_main" in part for part in p.cmdline())
        )

    def family(self) -> list[psutil.Process]:
        server = psutil.Process(self.process.pid)
        return [server, *server.children(recursive=True)]

    def rss(self) -> int:
        """Bytes of memory in use by the server and its children."""
        return sum(process.memory_info().rss for process in self.family())


PACA = (sys.executable, "-m", "service", "serve")


@contextmanager
def served(
    models: Path | None,
    command: Sequence[str] = PACA,
    stderr: int | IO[bytes] = subprocess.DEVNULL,
    **settings: object,
) -> Iterator[Serving]:
    """`paca serve` as users start it, with the models of a folder (None: the embedded ones), on a port of the
    system's choice. Killed at the end. stderr: where its log goes."""
    environment = {**os.environ, "PACA_PORT": "0", "PYTHONUNBUFFERED": "1"}
    environment |= {f"PACA_{name.upper()}": str(value) for name, value in settings.items()}
    if models:
        environment["PACA_MODELS"] = str(models)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True)
    family: list[psutil.Process] = []
    try:
        assert process.stdout is not None
        lines: list[str] = []
        found = None
        while not found and (line := process.stdout.readline()):
            lines.append(line)
            found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        assert found, f"the server did not start: {lines}, exit code {process.wait(10)}"
        serving = Serving(process, int(found[1]), [lines[-1], process.stdout.readline()])
        family = serving.family()
        yield serving
    finally:
        for member in family:
            if member.is_running():
                member.kill()
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def free_port() -> int:
    """A TCP port on loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@dataclass(frozen=True)
class Answer:
    """One request's fate. status: of HTTP, 0 where no answer came; seconds: from sending to the whole answer;
    refused: no connection was made."""

    status: int
    seconds: float
    headers: bytes = b""
    body: bytes = b""
    refused: bool = False


def post(body: bytes, path: str = "/classify") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: "
        f"{len(body)}\r\n\r\n".encode()
        + body
    )


class Connection:
    """One HTTP/1.1 connection, kept alive; opened again when the server closed it, or might: it closes what
    is idle for 5 seconds."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._used = 0.0
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> Answer:
        began = time.monotonic()
        if began - self._used > 3:
            self.close()
        try:
            self._streams = self._streams or await asyncio.open_connection(
                "127.0.0.1", self._port, limit=2**22
            )
        except OSError:
            return Answer(0, time.monotonic() - began, refused=True)
        reader, writer = self._streams
        try:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.I)
            body = await reader.readexactly(int(length[1]) if length else 0)
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            return Answer(0, time.monotonic() - began)
        self._used = time.monotonic()
        if b"connection: close" in head.lower():
            self.close()
        return Answer(int(head[9:12]), time.monotonic() - began, head, body)

    def close(self) -> None:
        if self._streams:
            self._streams[1].close()
            self._streams = None
