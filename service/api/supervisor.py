"""Several worker processes behind one listening socket: starts them, replaces the dead, passes signals on,
leaves no orphan.

uvicorn's own supervisor runs uvicorn's own server; ours drains. Each worker loads its own models and only
then takes connections from the one socket.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

from prometheus_client.multiprocess import mark_process_dead

from ..errors import CannotStart, DeviceLost, PacaError
from ..settings import Settings
from . import logs
from .server import run

log = logging.getLogger("paca.supervisor")
STOP_SECONDS = 28.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 10.0  # before replacing a worker that never became ready
RETRY_SECONDS = 1.0  # before another try where the system could not start a process


@dataclass(frozen=True)
class Place:
    """Where a worker belongs. number: from 0. pause: seconds before it is filled."""

    number: int
    pause: float = 0.0


class Worker:
    """One process. ready: whether it ever was; failure: why it could not start; reload: whether SIGHUP is to
    be passed on once it is ready."""

    def __init__(self, settings: Settings, sock: socket.socket, place: Place) -> None:
        """Starts it; OSError where the system allows no further process or pipe."""
        context = multiprocessing.get_context("spawn")
        self.ready, self.failure, self.reload, self.place = False, "", False, place
        self.channel, theirs = context.Pipe(duplex=False)
        arguments = (settings.for_worker(place.number), sock, theirs, place.pause)
        self.process = context.Process(target=work, args=arguments, name="paca-worker")
        try:
            self.process.start()
        except BaseException:
            self.channel.close()
            raise
        finally:
            theirs.close()

    def listen(self) -> None:
        """Takes what the worker has to say: that it is ready, or why it cannot be."""
        try:
            self.failure = self.channel.recv()
        except (EOFError, OSError):
            return
        self.ready = not self.failure
        if self.ready and self.reload:
            self.send_reload()

    def send_reload(self) -> None:
        """Passes SIGHUP on, at once or as soon as the worker is ready: before that it may not know it."""
        self.reload = not self.ready
        if self.ready and self.process.pid:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGHUP)


class Team:
    """The workers that run, and the empty places among them. ready: whether any worker ever was."""

    def __init__(self, settings: Settings, sock: socket.socket, folder: str) -> None:
        self.workers: list[Worker] = []
        self.ready = False
        self._settings, self._sock, self._folder = settings, sock, folder
        self._empty = [Place(number) for number in reversed(range(settings.workers))]

    def fill(self) -> None:
        """Starts a worker for every empty place. Where that fails before any was ready: CannotStart."""
        while self._empty:
            try:
                self.workers.append(Worker(self._settings, self._sock, self._empty[-1]))
            except OSError as error:
                reason = error.strerror or error
                if not self.ready:
                    raise CannotStart(
                        f"{self._settings.workers} worker processes cannot be started: {reason}; allow more "
                        "processes, memory and open files, or set PACA_WORKERS lower"
                    ) from error
                log.error("cannot start another worker yet: %s", reason)
                return
            self._empty.pop()

    def wait(self, signals: int) -> Sequence[object]:
        """Blocks until a signal, a worker's word or a worker's end, and takes what the workers say."""
        handles = [w.channel for w in self.workers] + [w.process.sentinel for w in self.workers]
        events = wait([signals, *handles], RETRY_SECONDS if self._empty else None)
        for worker in self.workers:
            if worker.channel in events:
                worker.listen()
                self.ready = self.ready or worker.ready
        return events

    def bury(self) -> None:
        """Makes the places of dead workers empty. CannotStart where one says why it could not start, and none
        was ready yet."""
        for worker in [w for w in self.workers if not w.process.is_alive()]:
            self.workers.remove(worker)
            worker.process.join()
            if worker.channel.poll():
                worker.listen()
            worker.channel.close()
            mark_process_dead(worker.process.pid, self._folder)
            log.error("worker %s ended with %s", worker.process.pid, worker.process.exitcode)
            worker.process.close()
            if worker.failure and not self.ready:
                raise CannotStart(worker.failure)
            longer = min(LONGEST_PAUSE_SECONDS, max(FIRST_PAUSE_SECONDS, 2 * worker.place.pause))
            self._empty.append(Place(worker.place.number, 0.0 if worker.ready else longer))

    def close(self) -> None:
        """Stops every worker; none is left afterwards."""
        self._sock.close()  # else connections would wait in it that nobody accepts
        for worker in self.workers:
            worker.process.terminate()
        until = time.monotonic() + STOP_SECONDS
        for worker in self.workers:
            worker.process.join(max(0.0, until - time.monotonic()))
            if worker.process.is_alive():
                log.error("worker %s did not stop in time", worker.process.pid)
                worker.process.kill()
                worker.process.join()
            worker.process.close()
            worker.channel.close()


def work(settings: Settings, sock: socket.socket, channel: Connection, pause: float) -> None:
    """What a worker process does: serve, and tell the supervisor "" when ready or why it cannot."""
    time.sleep(pause)
    try:
        run(settings, sock, lambda: channel.send(""), worker=True)
    except PacaError as error:
        channel.send(str(error))
        if isinstance(error, DeviceLost):  # Python's own end would free what lies on the device, and crash
            os._exit(error.exit_code)
        raise SystemExit(1) from None


def supervise(settings: Settings, sock: socket.socket, on_ready: Callable[[], None]) -> None:
    """Runs until a signal; CannotStart where no worker can start. on_ready: called once, when the first
    worker is ready."""
    logs.configure(settings.log_format, settings.log_level)
    announced = False
    with _metrics_folder() as folder, _signals() as signals, closing(Team(settings, sock, folder)) as team:
        while True:
            team.fill()
            events = team.wait(signals)
            if team.ready and not announced:
                on_ready()
                announced = True
            if signals in events:
                if os.read(signals, 1)[0] != signal.SIGHUP:
                    return
                for worker in team.workers:
                    worker.send_reload()
            team.bury()


@contextmanager
def _metrics_folder() -> Iterator[str]:
    """Where the workers count together, named to them by PROMETHEUS_MULTIPROC_DIR."""
    try:
        folder = tempfile.mkdtemp(prefix="paca-metrics-")
    except OSError as error:
        raise CannotStart(
            f"several workers count in a temporary folder, and none can be made: {error.strerror}; set TMPDIR"
        ) from None
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    try:
        yield folder
    finally:
        del os.environ["PROMETHEUS_MULTIPROC_DIR"]
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _signals() -> Iterator[int]:
    """A file descriptor that gives one byte, its number, for each SIGTERM, SIGINT and SIGHUP."""
    signals, wake = os.pipe()
    old = {
        sig: signal.signal(sig, lambda sig, _: os.write(wake, bytes([sig])) and None)
        for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    }
    try:
        yield signals
    finally:
        for sig, handler in old.items():
            signal.signal(sig, handler)
        os.close(signals)
        os.close(wake)
