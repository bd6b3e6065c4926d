"""Around every request: its id, the API key, security headers, Server-Timing, one log line and the metrics;
and the last word on errors.

Plain ASGI, because a middleware that copies streams would hide a caller's hanging up from the handler.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import problems
from .access import record
from .context import Context
from .keys import ApiKeys
from .metrics import Metrics
from .tracing import Annotate

log = logging.getLogger("paca.api")


class RequestMiddleware:
    """The outermost layer. root_path: the prefix under which a proxy shows this server. is_draining: whether
    connections should end with the answer, so that clients go elsewhere. annotate: writes what happened into
    a trace."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        *,
        root_path: str,
        is_draining: Callable[[], bool],
        keys: ApiKeys | None,
        annotate: Annotate | None,
    ) -> None:
        self.app, self.metrics, self.root_path = app, metrics, root_path
        self.is_draining, self.keys, self.annotate = is_draining, keys, annotate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        context = Context.of(headers)
        context.method, context.path = scope["method"], scope["path"]
        context.client = (scope.get("client") or (None,))[0]
        scope["paca"] = context
        if self.root_path:
            scope["root_path"] = self.root_path
        if context.method == "HEAD":  # in a copy: the server keeps its own scope, and so sends no body
            scope = {**scope, "method": "GET"}
        answered = False

        async def stamped(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                context.status = message["status"]
                outgoing = MutableHeaders(scope=message)
                outgoing["X-Request-ID"] = context.request_id
                outgoing["X-Content-Type-Options"] = "nosniff"
                if self.is_draining():
                    outgoing["Connection"] = "close"
                if timing := context.server_timing:
                    outgoing["Server-Timing"] = timing
            else:
                context.bytes_out += len(message.get("body", b""))
            await send(message)

        self.metrics.in_flight.inc()
        try:
            if self.keys:
                self.keys.check(scope["path"].removeprefix(scope.get("root_path", "")), headers)
            await self.app(scope, receive, stamped)
        except problems.Unauthorized as error:
            await problems.response(error, scope)(scope, receive, stamped)
        except Exception as error:
            log.exception(
                "a request failed in a way nobody foresaw",
                extra={"fields": {"request_id": context.request_id}},
            )
            if not answered:
                await problems.response(error, scope)(scope, receive, stamped)
        finally:
            self.metrics.in_flight.dec()
            if self.annotate:
                self.annotate(context)
            record(self.metrics, getattr(scope.get("route"), "path", ""), context)
