"""What is known of one request on its way through HTTP or gRPC: who it is, what happened to it. Written by
many, read by the log and the metrics."""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import Scope

from ..dataplane import Call

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(-.*)?"
)


@dataclass(kw_only=True)
class Context(Call):
    """One request and its `Call` of the data plane. started: `time.monotonic()` seconds. method, path,
    client: as the wire says. status: of HTTP, also where gRPC answers. error: why it was refused, if so."""

    request_id: str
    trace_id: str | None
    started: float
    method: str = ""
    path: str = ""
    client: str | None = None
    status: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    error: Exception | None = None

    @classmethod
    def of(cls, headers: Headers) -> Context:
        """From the request's X-Request-ID and W3C traceparent; a missing or unusable id is made."""
        given = headers.get("x-request-id", "")
        trace = _TRACEPARENT.fullmatch(headers.get("traceparent", ""))
        return cls(
            request_id=given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(16),
            trace_id=trace and trace[1],
            started=time.monotonic(),
        )

    @property
    def server_timing(self) -> str | None:
        """The header of that name, from the numbers of `timings_ms`; of several pictures the slowest of each
        step."""
        if not self.timings:
            return None
        steps = {
            name: max(getattr(t, name) for t in self.timings)
            for name in ("decode", "queue", "inference", "explain", "render", "total")
        }
        return ", ".join(
            f"{name};dur={value:.3f}"
            for name, value in steps.items()
            if value or name not in ("explain", "render")
        )


def context(scope: Scope) -> Context:
    """The context of the request that `scope` belongs to."""
    found: Context = scope["paca"]
    return found
