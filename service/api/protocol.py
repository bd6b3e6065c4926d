"""uvicorn's HTTP protocol under limits: what a hostile or broken client can hold is bounded in bytes and in
seconds before the app ever sees it.

A request head has 5 seconds, 16 KiB of headers and 8 KiB of address; a connection that is silent, does not
read its answer or keeps sending after it is closed. `uploads` bounds bodies. Refusals are problem
documents; after one the connection lingers, so that the client can read it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import httptools
from starlette.datastructures import Headers
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from ..errors import MalformedRequest, Overloaded, PacaError
from .context import Context
from .problems import MEDIA_TYPE, AddressTooLong, HeadersTooLarge, SlowUpload, headers_of, problem
from .transport import JoiningTransport

HEAD_SECONDS = 5.0
HEAD_BYTES = 16 * 1024
ADDRESS_BYTES = 8 * 1024
LINGER_SECONDS = 2.0  # for reading the refusal
REST_SECONDS = 10.0  # for the rest of a body that was answered before it was complete
STALL_SECONDS = 20.0  # without the client reading a byte of its answer
MAX_PIPELINED = 16
MAX_CONNECTIONS = 4096  # of one process


class GuardedProtocol(HttpToolsProtocol):
    """One connection. `check` must be called about twice a second; `refused` is told of every refusal."""

    refused: Callable[[PacaError, Context], None]

    def connection_made(self, transport: Any) -> None:
        super().connection_made(JoiningTransport(transport, self.loop))  # type: ignore[arg-type]
        self._head_since: float | None = time.monotonic()  # when the wait for a complete head began
        self._head_bytes = 0
        self._counted = True  # whether bytes that come now belong to the head alone
        self._rest_since: float | None = None  # when an answer was complete, its request not
        self._unread = 0  # bytes of answers the client had not read at the last look
        self._read_at = self._head_since
        self._refusal: PacaError | None = None
        self._lingers_until: float | None = None
        if len(self.connections) > MAX_CONNECTIONS:
            self._refuse(
                Overloaded("too many connections are open; try again in a moment", reason="connections")
            )

    def data_received(self, data: bytes) -> None:
        if self._lingers_until is not None:
            return
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._stay_http1(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self._refuse(
                self._refusal or MalformedRequest("this is not an HTTP/1.1 request the server can read")
            )
            return
        if self._head_since is not None:
            self._head_bytes += len(data) if self._counted else 0
            self._counted = True
            if self._head_bytes > HEAD_BYTES + ADDRESS_BYTES:
                self._refuse(_address_too_long() if len(self.url) > ADDRESS_BYTES else _headers_too_large())

    def _stay_http1(self, rest: bytes) -> None:
        """A server may ignore the wish for another protocol, which Java's client sends with every request;
        the parser would lose the body with it."""
        ignored = (b"connection", b"upgrade", b"http2-settings")
        lines = [b"%s: %s" % (name, value) for name, value in self.headers if name not in ignored]
        head = b"\r\n".join([b"%s %s HTTP/1.1" % (self.parser.get_method(), self.url), *lines, b"", b""])
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(head + rest)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self.cycle is not None:  # the first head's clock has run since the connection was made
            self._head_since, self._head_bytes, self._counted = time.monotonic(), 0, False

    def on_headers_complete(self) -> None:
        self._head_since = None
        if len(self.url) > ADDRESS_BYTES:
            self._refusal = _address_too_long()
        elif sum(len(name) + len(value) + 4 for name, value in self.headers) > HEAD_BYTES:
            self._refusal = _headers_too_large()
        elif self.parser.get_http_version() not in ("1.0", "1.1"):
            self._refusal = MalformedRequest("this server speaks HTTP/1.1 and HTTP/1.0")
        elif (
            sum(name == b"host" for name, _ in self.headers) != 1 and self.parser.get_http_version() == "1.1"
        ):
            self._refusal = MalformedRequest("an HTTP/1.1 request has one Host header")
        elif len(self.pipeline) >= MAX_PIPELINED:
            self._refusal = Overloaded(f"more than {MAX_PIPELINED} requests are waiting on this connection")
        elif self.parser.get_method() == b"CONNECT":
            self._refusal = MalformedRequest("this server is no proxy")
        if self._refusal:
            raise ValueError
        if self.parser.should_upgrade():
            return  # `_stay_http1` says it again without
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        self._rest_since = time.monotonic()
        super().on_response_complete()

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        if (
            self.cycle is not None and self.cycle.response_complete
        ):  # the rest of a request that was answered early: now the connection is idle
            self.cycle.more_body = False
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def check(self, now: float) -> None:
        """Closes the connection if its client had its time. now: `time.monotonic()` seconds."""
        unread = self.transport.get_write_buffer_size()
        if not unread or unread != self._unread:
            self._unread, self._read_at = unread, now
        if now - self._read_at > STALL_SECONDS or (
            self._lingers_until is not None and now > self._lingers_until
        ):
            self.transport.abort()
        elif (
            self._head_since is not None
            and now - self._head_since > HEAD_SECONDS
            and not self.flow.read_paused
        ):
            if self._head_bytes:
                self._refuse(
                    SlowUpload(
                        f"the request's head did not arrive within {HEAD_SECONDS:.0f} seconds",
                        limit="head_seconds",
                    )
                )
            else:
                self.transport.close()
        elif (
            self.cycle is not None
            and self.cycle.response_complete
            and self.cycle.more_body
            and now - (self._rest_since or now) > REST_SECONDS
        ):
            self.transport.abort()

    def _refuse(self, error: PacaError) -> None:
        """Answers with a problem and closes, unless an answer to an earlier request is still on its way: then
        that one is the last."""
        self._lingers_until = time.monotonic() + LINGER_SECONDS
        self._head_since = None
        if self.cycle is not None and not self.cycle.response_complete:
            broken = self.cycle.more_body  # the trouble is in the body that the app is reading
            self.cycle.disconnected = broken
            self.cycle.message_event.set()
            if not broken or self.pipeline or self.cycle.response_started:
                self._lingers_until += STALL_SECONDS
                self.cycle.keep_alive = False
                return
        context = Context.of(Headers())
        document = problem(error, context.request_id)
        context.status, context.error = document["status"], error
        body = json.dumps(document).encode()
        headers = {
            "Content-Type": MEDIA_TYPE,
            "Content-Length": str(len(body)),
            "Connection": "close",
            "X-Request-ID": context.request_id,
            **headers_of(error),
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.transport.write(STATUS_LINE[context.status] + head.encode("latin-1") + b"\r\n" + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        type(self).refused(error, context)


def _address_too_long() -> AddressTooLong:
    return AddressTooLong(
        f"the address is longer than {ADDRESS_BYTES} bytes; send parameters in the body",
        limit="address_bytes",
        value=ADDRESS_BYTES,
    )


def _headers_too_large() -> HeadersTooLarge:
    return HeadersTooLarge(
        f"the headers are larger than {HEAD_BYTES} bytes", limit="header_bytes", value=HEAD_BYTES
    )
