"""Around every call: its id, the API key, the size limit, the deadline, one log line and the metrics; and the
last word on errors. What `api.middleware` is for HTTP.

Messages come and go as bytes here, so that a call can be refused before its message is awaited. A caller who
leaves cancels the task that answers, and with it what the data plane does for it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from grpc.aio import EOF, ServerInterceptor, ServicerContext
from starlette.datastructures import Headers

from ...errors import ClientGone, DeadlineExceeded, Draining, MalformedRequest
from ..access import record
from ..context import Context
from ..problems import UNFORESEEN, Unauthorized, headers_of, problem, row_of
from ..state import State
from ..uploads import BODY_RATE, BODY_SECONDS, body_too_large, slow_upload

log = logging.getLogger("paca.api")
Read = Callable[[], Awaitable[bytes]]
Work = Callable[[Read, Context], Awaitable[bytes]]


class Calls(ServerInterceptor):  # type: ignore[misc]
    """tasks: of the calls that are being answered. closing: whether new ones are sent elsewhere."""

    def __init__(self, shared: State) -> None:
        self._shared = shared
        self.tasks: set[asyncio.Task[Any]] = set()
        self.closing = False

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """The handler of a method of any service; one that refuses while closing or without a right key."""
        try:
            if self.closing:
                raise Draining("the server is shutting down; ask another one")
            if self._shared.keys:
                self._shared.keys.check(details.method, _headers(details.invocation_metadata))
        except (Draining, Unauthorized) as error:
            return self.handler(details.method, _refuse(error))
        return await continuation(details)

    def handler(self, method: str, work: Work) -> grpc.RpcMethodHandler:
        """A handler that answers with what `work` returns. It takes a stream of one message, which on the
        wire is the same as a message."""

        async def answer(_: object, rpc: ServicerContext) -> bytes:
            headers = _headers(rpc.invocation_metadata())
            context = Context.of(headers)
            context.method, context.path, context.client = "gRPC", method, _address(rpc.peer())
            rpc.set_trailing_metadata((("x-request-id", context.request_id),))
            return await self._answer(work, rpc, context)

        return grpc.stream_unary_rpc_method_handler(answer)

    async def _answer(self, work: Work, rpc: ServicerContext, context: Context) -> bytes:
        metrics, task = self._shared.metrics, asyncio.current_task()
        if task:  # lives until the answer is sent
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        metrics.in_flight.inc()
        try:
            response = await work(lambda: self._read(rpc, context), context)
            context.status, context.bytes_out = 200, len(response)
            return response
        except asyncio.CancelledError:
            if _seconds_left(rpc) > 0:
                context.error = ClientGone("the client went away before its answer was ready")
            else:
                context.error = DeadlineExceeded("the client's deadline passed before the answer was ready")
            raise
        except Exception as error:  # the last word, whatever it is
            context.error = error
            if row_of(error) == UNFORESEEN:
                fields = {"request_id": context.request_id}
                log.exception("a call failed in a way nobody foresaw", extra={"fields": fields})
        finally:
            if context.error:
                context.status = row_of(context.error).status
            metrics.in_flight.dec()
            record(metrics, context.path, context)
        return await _abort(context.error, rpc, context)

    async def _read(self, rpc: ServicerContext, context: Context) -> bytes:
        """The request's message, once all of it is here. Starts the deadline, the earlier of the client's and
        the server's."""
        try:
            async with asyncio.timeout(BODY_SECONDS + self._shared.max_body / BODY_RATE):
                message = await rpc.read()
        except TimeoutError:
            raise slow_upload() from None
        if message is EOF:
            raise MalformedRequest("the call ended without a message")
        context.bytes_in = len(message)
        if len(message) > self._shared.max_body:
            raise body_too_large(self._shared.max_body)
        left = min(self._shared.settings.deadline_ms / 1000, _seconds_left(rpc))
        context.deadline = time.monotonic() + left
        return bytes(message)


async def _abort(error: Exception, rpc: ServicerContext, context: Context) -> bytes:
    """Ends the call with the error's code and text, and what HTTP would say in headers."""
    row = row_of(error)
    trailing = [("x-request-id", context.request_id)]
    for name, value in headers_of(error).items():
        trailing.append((name.lower(), value))
        if name == "Retry-After":  # in the words of gRPC's own retries
            trailing.append(("grpc-retry-pushback-ms", str(1000 * int(value))))
    await rpc.abort(grpc.StatusCode[row.rpc], problem(error, context.request_id)["detail"], tuple(trailing))
    raise AssertionError  # abort raises


def _refuse(error: Exception) -> Work:
    async def work(read: Read, context: Context) -> bytes:
        raise error

    return work


def _headers(metadata: Any) -> Headers:
    """A call's metadata as the headers that they are; binary ones left out."""
    return Headers({key: value for key, value in metadata or () if isinstance(value, str)})


def _seconds_left(rpc: ServicerContext) -> float:
    """Until the client's deadline."""
    left = rpc.time_remaining()
    return math.inf if left is None else float(left)


def _address(peer: str) -> str:
    """`ipv4:10.0.0.1:5000` without its kind and its port, as the log has it for HTTP."""
    return peer.partition(":")[2].rpartition(":")[0].strip("[]")
