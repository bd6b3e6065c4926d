"""OpenTelemetry, if switched on: one server span a request, exported as the standard OTEL_* variables say.
The only file that imports it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from starlette.middleware import Middleware

from .. import __version__
from ..errors import CannotStart
from .context import Context
from .keys import OPEN_PATHS

Annotate = Callable[[Context], None]
QUIET = tuple(f"{path}$" for path in sorted(OPEN_PATHS))


@dataclass(frozen=True)
class Tracing:
    """middleware: the outermost. annotate: writes a finished request into its span. close: sends what is
    left; blocking."""

    middleware: Middleware
    annotate: Annotate
    close: Callable[[], None]


def tracing() -> Tracing:
    """Spans to the collector that the environment names; CannotStart where the extra is not installed."""
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from starlette.middleware.opentelemetry import OpenTelemetryMiddleware
    except ImportError:
        raise CannotStart(
            "PACA_OTEL needs the extra 'otel': run `pip install '.[otel]'` in the clone"
        ) from None
    name = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "paca"}
    provider = TracerProvider(resource=Resource.create({**name, "service.version": __version__}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))

    def annotate(context: Context) -> None:
        span = trace.get_current_span()
        if span.get_span_context().is_valid:
            context.trace_id = trace.format_trace_id(span.get_span_context().trace_id)
        span.set_attribute("paca.request_id", context.request_id)
        if context.model:
            span.set_attribute("paca.model", context.model)
        if context.timings:
            for step in ("decode", "queue", "inference", "explain", "render"):
                span.set_attribute(
                    f"paca.{step}_ms", max(getattr(timings, step) for timings in context.timings)
                )

    return Tracing(
        Middleware(OpenTelemetryMiddleware, excluded_urls=QUIET, tracer_provider=provider),
        annotate,
        provider.shutdown,
    )
