"""The end of every request, over HTTP or gRPC: counted in the metrics, and one line in the log."""

from __future__ import annotations

import logging
import time

from .context import Context
from .keys import OPEN_PATHS
from .logs import bounded
from .metrics import Metrics
from .problems import kind_of

log = logging.getLogger("paca.access")


def record(metrics: Metrics, endpoint: str, context: Context) -> None:
    """endpoint: the route's path, or the full name of the method called."""
    seconds = time.monotonic() - context.started
    metrics.request(endpoint, context, seconds)
    level = logging.DEBUG if endpoint in OPEN_PATHS and context.status == 200 else logging.INFO
    if log.isEnabledFor(level):
        fields = {
            "request_id": context.request_id,
            "trace_id": context.trace_id,
            "method": bounded(context.method),
            "path": bounded(context.path),
            "status": context.status,
            "ms": round(1000 * seconds, 2),
            "bytes_in": context.bytes_in,
            "bytes_out": context.bytes_out,
            "client": context.client,
            "model": context.model,
            "pictures": context.pictures,
            "reason": kind_of(context.error) if context.error else None,
        }
        said = {name: value for name, value in fields.items() if value not in (None, "")}
        log.log(level, "request", extra={"fields": said})
