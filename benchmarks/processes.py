"""A server under measurement: started on a core of its own, waited for, its CPU time and memory counted over
every process it has.

`pause` stops a server that is not being measured, so that several can stand ready on one core without
disturbing each other. What is sent is `traffic`'s.
"""

from __future__ import annotations

import math
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil

MARK = "BENCH_SERVER"


CORES = sorted(os.sched_getaffinity(0))
"""The cores this process may use at its start: servers get the first, the load generator the last."""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Server:
    """One server with all its processes, pinned to `on` cores. A context manager: leaving it stops everything
    that was started."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], port: int, on: Sequence[int], log: Path
    ) -> None:
        self.port, self.log, self._mark = port, log, secrets.token_hex(8)
        self.started = time.monotonic()
        self.seconds_to_ready = float("nan")
        with log.open("wb") as out:
            self._root = subprocess.Popen(
                command,
                env={**os.environ, **environment, MARK: self._mark},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: os.sched_setaffinity(0, on),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait(self, answers: Callable[[], bool], seconds: float = 150, refusals: int = 200) -> Self:
        """Until `answers()`; notes how long after the start that was, the first time. RuntimeError with the
        log's end where the server died, took too long or refused too often."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._root.poll() is None and refusals:
            with suppress(OSError, EOFError, ValueError, IndexError):
                if answers():
                    if math.isnan(self.seconds_to_ready):
                        self.seconds_to_ready = time.monotonic() - self.started
                    return self
                refusals -= 1
            time.sleep(0.05)
        raise RuntimeError(
            f"the server does not answer; its log ends with:\n{self.log.read_text(errors='replace')[-3000:]}"
        )

    def members(self) -> list[psutil.Process]:
        """Every process of this server: the one started, its descendants, and those that left the family but
        carry its mark."""
        found: dict[int, psutil.Process] = {}
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self._root.pid)
            found = {p.pid: p for p in (root, *root.children(recursive=True))}
        for process in psutil.process_iter():
            if process.pid not in found and _environment(process).get(MARK) == self._mark:
                found[process.pid] = process
        return list(found.values())

    def cpu_seconds(self) -> float:
        """User and system time of all its processes so far."""
        total = 0.0
        for process in self.members():
            try:
                times = process.cpu_times()
                total += times.user + times.system
            except psutil.Error:
                continue
        return total

    def memory(self, kind: str = "pss") -> float:
        """MiB of RAM over all its processes. kind: pss (pages shared between processes counted once) or rss
        (counted in each)."""
        total = 0
        for process in self.members():
            try:
                total += getattr(process.memory_full_info(), kind)
            except psutil.Error:
                continue
        return total / 2**20

    def pause(self) -> None:
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        self._send(signal.SIGCONT)

    def stop(self, seconds: float = 8.0) -> None:
        """SIGTERM to the process that was started, then SIGKILL to whatever of this server is left."""
        self.resume()
        self._root.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._root.wait(seconds)
        self._send(signal.SIGKILL)
        self._root.wait()

    def _send(self, sig: signal.Signals) -> None:
        for process in self.members():
            try:
                process.send_signal(sig)
            except psutil.Error:
                continue


def _environment(process: psutil.Process) -> Mapping[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}
