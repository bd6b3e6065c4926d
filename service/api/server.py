"""Runs the app on a socket in one process: uvicorn with a guarded protocol, a shutdown that loses no request,
and an exit code that tells the truth.

SIGTERM: /readyz says 503 at once, and so does the health service of gRPC in its words. Requests are answered
for a moment longer so that load balancers can look away, then the ports close, what was accepted is answered,
exit 0. SIGINT skips the moment. SIGHUP reads the API keys and the model repository again. `supervisor` runs
several of these processes, `launch` chooses.

A device that fails for good cannot recover in this process: /readyz says 503, requests get 503 for the same
moment, then the process ends with an exit code of its own, so that whatever watches it starts it again.

A server on its own listens at once, so that /readyz can say what it waits for; a worker among several only
when its models are loaded, since until then another one can answer.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from multiprocessing import parent_process
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from ..errors import CannotStart, DeviceLost
from ..settings import Settings
from . import logs
from .app import create_app
from .protocol import MAX_CONNECTIONS, GuardedProtocol
from .rpc import open_rpc
from .state import state

log = logging.getLogger("paca.server")
GRACE_SECONDS = 2.0  # of answering while /readyz already says 503
LAST_SECONDS = 0.5  # for requests of connections that were accepted just before the socket closed
DRAIN_SECONDS = 22  # for answering what was accepted; the whole shutdown stays under 30
# New objects between two looks of the garbage collector; Python's own 700 are meant for smaller programs.
COLLECT_AFTER_OBJECTS = 10_000


class Server(uvicorn.Server):
    """One process's server. on_ready: called once, when the models are loaded."""

    def __init__(self, app: FastAPI, on_ready: Callable[[], None], worker: bool = False) -> None:
        self.shared = state(app)
        config = uvicorn.Config(
            app,
            http=type("Protocol", (GuardedProtocol,), {"refused": staticmethod(self.shared.metrics.refused)}),
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
        super().__init__(config)
        self._on_ready: Callable[[], None] | None = on_ready
        self._worker = worker
        self._rpc = open_rpc(self.shared)
        self._sockets: list[socket.socket] = []
        self._stop_at: float | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._sockets = sockets or []
        await super().startup([])
        if not self._worker:
            await self._listen()
        self._spawn(self._look_at_connections())
        if hasattr(signal, "SIGHUP"):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, lambda: self._spawn(self._reload()))

    async def _listen(self) -> None:
        if self._rpc:
            try:
                await self._rpc.listen()
            except CannotStart as error:
                self.shared.failure = error
                return
        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(self._protocol, sock=sock, backlog=self.config.backlog)
            for sock in self._sockets
        ]

    def _protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            _loop=asyncio.get_running_loop(),
        )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look_at_connections(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            now = time.monotonic()
            for connection in list(self.server_state.connections):
                connection.check(now)  # type: ignore[union-attr]

    async def _reload(self) -> None:
        """What SIGHUP asks for. What cannot be read stays as it was."""
        try:
            if self.shared.keys:
                await asyncio.to_thread(self.shared.keys.reload)
        except CannotStart as error:
            log.error("the API keys stay as they were: %s", error)
        await self.shared.registry.reload()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Starts the shutdown; a second SIGINT ends it. Not remembered, so that the exit code is 0 and not
        that of the signal."""
        if sig == signal.SIGINT and self._worker:
            return  # a terminal's Ctrl-C reaches every process; the supervisor decides
        if self._stop_at is not None:
            self.force_exit = sig == signal.SIGINT
            return
        self.shared.registry.drain()
        self._stop_at = time.monotonic() + (GRACE_SECONDS if sig == signal.SIGTERM else 0.0)

    def _give_up(self) -> None:
        """Starts the end of a process whose device is lost. A worker leaves its connections to the others at
        once. Should the driver hold the shutdown up, the process ends without one."""
        log.error("%s", self.shared.registry.lost)
        self._stop_at = time.monotonic() + (0.0 if self._worker else GRACE_SECONDS)
        last = threading.Timer(GRACE_SECONDS + DRAIN_SECONDS, os._exit, (DeviceLost.exit_code,))
        last.daemon = True
        last.start()

    async def on_tick(self, counter: int) -> bool:
        if self._stop_at is None and self.shared.registry.lost:
            self._give_up()
        if self.shared.failure is not None or (
            self._stop_at is not None and time.monotonic() >= self._stop_at
        ):
            self.should_exit = True
        elif self._on_ready and self.shared.registry.ready[0]:
            if self._worker:
                await self._listen()
            if self.shared.failure is None:
                _collect_less()
                self._on_ready()
            self._on_ready = None
        elif self._worker and counter % 10 == 0 and self._stop_at is None:
            supervisor = parent_process()
            if supervisor and not supervisor.is_alive():
                self.handle_exit(signal.SIGTERM, None)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        until = time.monotonic() + DRAIN_SECONDS
        calls = asyncio.create_task(self._rpc.stop(DRAIN_SECONDS)) if self._rpc else None
        if self.servers and self.shared.failure is None:
            await self._stop_listening(sockets or [])
        while calls and not calls.done() and not self.force_exit:  # they need the models, which go next
            await asyncio.wait((calls,), timeout=0.1)
        self.config.timeout_graceful_shutdown = max(1, round(until - time.monotonic()))
        await super().shutdown(sockets)
        for task in self._tasks:
            task.cancel()

    async def _stop_listening(self, sockets: list[socket.socket]) -> None:
        """Takes the connections that wait in the socket, closes it before another can come, and lets those
        just taken say what they want."""
        waiting = [connection for sock in sockets for connection in iter(lambda: _accept(sock), None)]  # noqa: B023
        for server in self.servers:
            server.close()
        for sock in sockets:
            sock.close()
        loop = asyncio.get_running_loop()
        for connection in waiting:
            await loop.connect_accepted_socket(self._protocol, connection)
        await asyncio.sleep(LAST_SECONDS)


def _collect_less() -> None:
    """What has been loaded stays: the garbage collector need not go through it again and again while requests
    are answered (about 1 % of their CPU time)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER_OBJECTS)


def _accept(sock: socket.socket) -> socket.socket | None:
    try:
        return sock.accept()[0]
    except OSError:
        return None


def _allow_connections() -> None:
    """Raises this process's limit of open files as far as the system allows and it needs: each connection is
    one."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(now, min(most, 4 * MAX_CONNECTIONS)), most))


def run(settings: Settings, sock: socket.socket, on_ready: Callable[[], None], worker: bool = False) -> None:
    """Serves on a bound socket until a signal; CannotStart where the models cannot be loaded, DeviceLost
    where the device failed for good."""
    logs.configure(settings.log_format, settings.log_level)
    _allow_connections()
    server = Server(create_app(settings), on_ready, worker)
    server.run([sock])
    if lost := server.shared.registry.lost:
        raise DeviceLost(lost)
    failure = server.shared.failure
    if isinstance(failure, CannotStart):
        raise failure
    if failure is not None:
        raise CannotStart(f"the models could not be loaded: {failure}") from failure
