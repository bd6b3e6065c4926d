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
from collections.abc import Callable
from multiprocessing.connection import Connection, wait

from prometheus_client.multiprocess import mark_process_dead

from ..errors import CannotStart, PacaError
from ..settings import Settings
from . import logs

log = logging.getLogger("paca.supervisor")
STOP_SECONDS = 28.0
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0  # before a worker is replaced that never became ready


class Worker:
    """One process. ready: whether it ever was; failure: why it could not start."""

    def __init__(self, settings: Settings, sock: socket.socket, pause: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.ready, self.failure, self.pause = False, "", pause
        self.channel, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=work, args=(settings, sock, theirs, pause), name="paca-worker")
        self.process.start()
        theirs.close()

    def listen(self) -> bool:
        """Takes what the worker has to say; whether it has just become ready."""
        try:
            word = self.channel.recv()
        except (EOFError, OSError):
            return False
        self.ready, self.failure = not word, word
        return self.ready


def work(settings: Settings, sock: socket.socket, channel: Connection, pause: float) -> None:
    """What a worker process does: serve, and tell the supervisor "" when ready or why it cannot."""
    from .server import run

    time.sleep(pause)
    try:
        run(settings, sock, lambda: channel.send(""), worker=True)
    except PacaError as error:
        channel.send(str(error))
        raise SystemExit(1) from None


def supervise(settings: Settings, sock: socket.socket, on_ready: Callable[[], None]) -> None:
    """Runs until a signal; CannotStart where no worker can start. on_ready: called once, when the first
    worker is ready."""
    logs.configure(settings.log_format, settings.log_level)
    try:
        folder = tempfile.mkdtemp(prefix="paca-metrics-")
    except OSError as error:
        raise CannotStart(
            f"several workers count in a temporary folder, and none can be made: {error.strerror}; set TMPDIR"
        ) from None
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    signals, wake = os.pipe()
    old = {
        sig: signal.signal(sig, lambda sig, _: os.write(wake, bytes([sig])) and None)
        for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    }
    workers = [Worker(settings, sock, 0.0) for _ in range(settings.workers)]
    announced = False
    try:
        while True:
            channels = [w.channel for w in workers]
            events = wait([signals, *channels, *(w.process.sentinel for w in workers)])
            for worker in workers:
                if worker.channel in events and worker.listen() and not announced:
                    on_ready()
                    announced = True
            if signals in events:
                sig = os.read(signals, 1)[0]
                if sig != signal.SIGHUP:
                    return
                for worker in workers:
                    if (
                        worker.ready and worker.process.pid
                    ):  # one that is still loading sees the folder as it is
                        os.kill(worker.process.pid, signal.SIGHUP)
            workers = [
                w if w.process.is_alive() else _replace(w, settings, sock, folder, announced) for w in workers
            ]
    finally:
        sock.close()  # else connections would wait in it that nobody accepts
        _stop(workers)
        for sig, handler in old.items():
            signal.signal(sig, handler)
        os.close(signals)
        os.close(wake)
        del os.environ["PROMETHEUS_MULTIPROC_DIR"]
        shutil.rmtree(folder, ignore_errors=True)


def _replace(dead: Worker, settings: Settings, sock: socket.socket, folder: str, announced: bool) -> Worker:
    dead.process.join()
    if dead.channel.poll():
        dead.listen()
    dead.channel.close()
    mark_process_dead(dead.process.pid, folder)
    if dead.failure and not announced:
        raise CannotStart(dead.failure)
    log.error("worker %s ended with %s, starting another", dead.process.pid, dead.process.exitcode)
    return Worker(settings, sock, 0.0 if dead.ready else min(LONGEST_PAUSE, max(FIRST_PAUSE, 2 * dead.pause)))


def _stop(workers: list[Worker]) -> None:
    for worker in workers:
        worker.process.terminate()
    until = time.monotonic() + STOP_SECONDS
    for worker in workers:
        worker.process.join(max(0.0, until - time.monotonic()))
        if worker.process.is_alive():
            log.error("worker %s did not stop in time", worker.process.pid)
            worker.process.kill()
            worker.process.join()
