"""Several workers: what the system refuses, and what is left behind. Crashes under load: tests/faults."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from multiprocessing import resource_tracker
from pathlib import Path

import pytest

from service.api import supervisor
from service.errors import CannotStart
from service.settings import Settings


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[supervisor.Worker]]:
    """Lets the system start that many workers and no more; returns those that were started."""

    start = supervisor.Worker.__init__

    def allow(number: int) -> list[supervisor.Worker]:
        made: list[supervisor.Worker] = []

        def guarded(self: supervisor.Worker, *arguments: object) -> None:
            if len(made) >= number:
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            start(self, *arguments)  # type: ignore[arg-type]
            made.append(self)

        monkeypatch.setattr(supervisor.Worker, "__init__", guarded)
        return made

    return allow


@pytest.fixture
def sock() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def test_a_worker_that_cannot_be_started_leaves_nothing_behind(processes, sock, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    handlers = [signal.getsignal(sig) for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    resource_tracker.ensure_running()  # multiprocessing keeps one for every process of the test run
    descriptors = len(os.listdir("/proc/self/fd"))
    started = processes(1)
    with pytest.raises(CannotStart, match=r"2 worker processes cannot be started.*PACA_WORKERS"):
        supervisor.supervise(Settings(workers=2, models=tmp_path), sock, lambda: None)
    (first,) = started
    with pytest.raises(ValueError, match="process object is closed"):
        first.process.is_alive()
    assert sock.fileno() == -1
    assert [signal.getsignal(sig) for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)] == handlers
    assert list(tmp_path.glob("paca-metrics-*")) == []
    assert "PROMETHEUS_MULTIPROC_DIR" not in os.environ
    assert len(os.listdir("/proc/self/fd")) <= descriptors


def test_a_replacement_that_cannot_be_started_is_tried_again(processes, sock, tmp_path, caplog):
    team = supervisor.Team(Settings(workers=2, models=tmp_path), sock, str(tmp_path))
    try:
        team.fill()
        team.ready = True
        team.workers[0].process.kill()
        team.workers[0].process.join()
        processes(0)
        team.bury()
        team.fill()
        assert len(team.workers) == 1
        assert "cannot start another worker yet" in caplog.text
        processes(1)
        team.fill()
        assert len(team.workers) == 2
    finally:
        team.close()


def test_a_reload_waits_for_a_worker_that_still_loads(tiny_repository: Path, sock, tmp_path, monkeypatch):
    team = supervisor.Team(Settings(workers=1, models=tiny_repository), sock, str(tmp_path))
    reading, writing = os.pipe()
    try:
        team.fill()
        sent: list[int] = []
        with monkeypatch.context() as patched:
            patched.setattr(os, "kill", lambda pid, sig: sent.append(sig))
            team.workers[0].send_reload()
            assert sent == []
            while not team.ready:
                team.wait(reading)
            assert sent == [signal.SIGHUP]
    finally:
        team.close()
        os.close(reading)
        os.close(writing)


def test_each_worker_gets_the_next_device_and_its_successor_the_same(
    sock: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []

    class Started:
        def __init__(self, target: object, args: tuple, name: str) -> None:
            given.append(args[0].device_id)
            self.pid, self.exitcode, self.sentinel = 0, 69, 0

        def start(self) -> None: ...
        def is_alive(self) -> bool:
            return False

        def join(self) -> None: ...
        def close(self) -> None: ...

    class Context:
        Pipe, Process = staticmethod(multiprocessing.Pipe), Started

    monkeypatch.setattr(multiprocessing, "get_context", lambda method: Context)
    settings = Settings(workers=3, devices=(1, 2), models=tmp_path)
    team = supervisor.Team(settings, sock, str(tmp_path))
    team.fill()
    assert given == [1, 2, 1]
    team.workers[:] = team.workers[1:2]
    team.bury()
    team.fill()
    assert given == [1, 2, 1, 2]
