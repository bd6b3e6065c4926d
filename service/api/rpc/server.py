"""The gRPC port of one process: opens it in the event loop that runs the app, shows health, and closes it
without losing a call."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection

from ...errors import CannotStart
from ..protocol import HEAD_BYTES, MAX_CONNECTIONS
from ..state import State
from . import SERVICE
from .calls import Calls
from .servicer import methods

log = logging.getLogger("paca.rpc")
TURN_AWAY_SECONDS = 0.5  # in which new calls are refused; the library gives those it cuts off no reason
LOOK_SECONDS = 0.1  # between looks whether the server is ready, for those who watch its health
ONLY_IDENTITY = 1 << 0  # of the compressions; a small message could become a huge one
READY = {
    True: health_pb2.HealthCheckResponse.SERVING,
    False: health_pb2.HealthCheckResponse.NOT_SERVING,
}


class RpcServer:
    """listen once, then stop once, both in the app's event loop."""

    def __init__(self, shared: State) -> None:
        self._shared, self._calls = shared, Calls(shared)
        self._health = health.HealthServicer()
        self._server: grpc.aio.Server | None = None
        self._watching: asyncio.Task[None] | None = None

    async def listen(self) -> None:
        """Opens the port; CannotStart where it is taken."""
        settings = self._shared.settings
        server = grpc.aio.server(
            interceptors=(self._calls,),
            maximum_concurrent_rpcs=MAX_CONNECTIONS,
            options=(
                ("grpc.so_reuseport", int(settings.workers > 1)),  # each worker opens the port itself
                # The library refuses what is larger in its own words; up to here `calls` does in ours.
                ("grpc.max_receive_message_length", 2 * self._shared.max_body),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_metadata_size", HEAD_BYTES),
                ("grpc.compression_enabled_algorithms_bitset", ONLY_IDENTITY),
                ("grpc.keepalive_time_ms", 30_000),  # finds callers that vanished without a word
                ("grpc.keepalive_timeout_ms", 10_000),
            ),
        )
        handlers = {
            name: self._calls.handler(f"/{SERVICE}/{name}", work)
            for name, work in methods(self._shared.plane).items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((SERVICE, HEALTH, reflection.SERVICE_NAME), server)
        await self._show(self._shared.plane.ready[0])
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        try:
            server.add_insecure_port(f"{host}:{settings.grpc_port}")
        except RuntimeError:
            raise CannotStart(
                f"cannot listen on {settings.host[:80]!r} port {settings.grpc_port} for gRPC: it is taken, "
                "or the address is not this machine's; choose another with PACA_GRPC_PORT or --grpc-port"
            ) from None
        await server.start()
        self._server, self._watching = server, asyncio.create_task(self._watch())
        log.info("gRPC answers on %s:%d", host, settings.grpc_port)

    async def stop(self, seconds: float) -> None:
        """Takes no more calls, gives those under way so many seconds, then ends what is left: streams that
        watch health never end by themselves."""
        if self._server is None:
            return
        until = time.monotonic() + seconds
        self._calls.closing = True
        await asyncio.sleep(TURN_AWAY_SECONDS)
        seconds = until - time.monotonic()
        closing = asyncio.create_task(self._server.stop(seconds))
        if self._calls.tasks:
            await asyncio.wait(set(self._calls.tasks), timeout=seconds)
        await self._server.stop(None)
        await closing
        if self._watching:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching

    async def _watch(self) -> None:
        shown = None
        while True:
            ready = self._shared.plane.ready[0]
            if ready != shown:
                await self._show(ready)
                shown = ready
            await asyncio.sleep(LOOK_SECONDS)

    async def _show(self, ready: bool) -> None:
        for service in ("", SERVICE):
            await self._health.set(service, READY[ready])
