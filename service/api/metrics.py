"""Every Prometheus metric, by name. The core returns timings and knows no metric; here they are observed.

Every series exists from the start, so that no request, whatever it says, can add one: labels are route
templates, statuses and loaded models only. With several workers each process writes its numbers into files of
PROMETHEUS_MULTIPROC_DIR and any of them answers for all.
"""

from __future__ import annotations

import logging
import os
from weakref import WeakKeyDictionary

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from ..errors import PacaError
from ..registry import Registry
from ..results import Timings
from .context import Context
from .problems import STATUS, UNFORESEEN, kind_of, row_of

disable_created_metrics()  # no dashboard wants a second series for each counter
access = logging.getLogger("paca.access")
OTHER = "other"
ENDPOINTS = ("/classify", "/explain", "/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer")
QUIET = (
    "/models",
    "/models/{name}",
    "/healthz",
    "/readyz",
    "/metrics",
    "/v2/*",
    "/docs",
    OTHER,
)  # counted, not timed
CODES = sorted({200, UNFORESEEN.status, *(row.status for row in STATUS.values())})
REASONS = sorted({kind_of(kind("")) for kind in STATUS})
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of one app."""

    def __init__(self) -> None:
        self._registry = r = CollectorRegistry()
        self.requests = Counter(
            "paca_requests", "Requests answered, by route and status.", ["endpoint", "code"], registry=r
        )
        self.request_seconds = Histogram(
            "paca_request_seconds",
            "Seconds from headers to answer.",
            ["endpoint"],
            buckets=SECONDS,
            registry=r,
        )
        self.rejected = Counter("paca_rejected", "Requests refused, by reason.", ["reason"], registry=r)
        self.cancelled = Counter(
            "paca_cancelled", "Requests whose caller left before the answer.", registry=r
        )
        self.reload_failures = Counter(
            "paca_reload_failures", "New model versions that could not be loaded.", registry=r
        )
        self.inferred = Counter(
            "paca_inferred", "Pictures that went through the model.", ["model"], registry=r
        )
        self.dropped = Counter(
            "paca_dropped", "Pictures that did not, because their caller had left.", ["model"], registry=r
        )
        self.in_flight = Gauge(
            "paca_in_flight", "Requests being answered.", registry=r, multiprocess_mode="livesum"
        )
        self.queue_depth = Gauge(
            "paca_queue_depth",
            "Pictures waiting for the engine.",
            ["model"],
            registry=r,
            multiprocess_mode="livesum",
        )
        self.ready = Gauge(
            "paca_ready", "Server processes that are ready.", registry=r, multiprocess_mode="livesum"
        )
        self.info = Gauge(
            "paca_model_info",
            "Models: 1 while loaded, with the provider in use.",
            ["model", "version", "sha256", "provider", "precision"],
            registry=r,
            multiprocess_mode="livemax",
        )
        self._steps = {
            step: Histogram(
                f"paca_{step}_seconds", f"Seconds of {words}.", ["model"], buckets=SECONDS, registry=r
            )
            for step, words in {
                "decode": "decoding and preprocessing one picture",
                "queue": "waiting for the engine",
                "inference": "a run of the model",
                "postprocess": "computing maps and drawing pictures",
            }.items()
        }
        self.batch_size = Histogram(
            "paca_batch_size",
            "Pictures in the run that answered, one sample a picture.",
            ["model"],
            buckets=BATCHES,
            registry=r,
        )
        self._seen: WeakKeyDictionary[object, dict[Counter, int]] = WeakKeyDictionary()
        self._shown: set[tuple[str, ...]] = set()
        for endpoint in (*ENDPOINTS, *QUIET):
            for code in CODES:
                self.requests.labels(endpoint, code)
        for endpoint in ENDPOINTS:
            self.request_seconds.labels(endpoint)
        for reason in REASONS:
            self.rejected.labels(reason)

    def request(self, template: str, context: Context, seconds: float) -> None:
        """Counts one answered request; `template`: the route's path."""
        endpoint = endpoint_of(template)
        status = context.status or 499  # no answer at all: the connection was cut
        self.requests.labels(endpoint, status if status in CODES else UNFORESEEN.status).inc()
        if endpoint in ENDPOINTS:
            self.request_seconds.labels(endpoint).observe(seconds)
        if context.error is not None:
            self.refusal(context.error)

    def refused(self, error: PacaError, context: Context) -> None:
        """Counts a request that was refused before it had a route."""
        self.request(OTHER, context, 0.0)
        access.info(
            "request",
            extra={
                "fields": {
                    "request_id": context.request_id,
                    "status": context.status,
                    "reason": kind_of(error),
                }
            },
        )

    def refusal(self, error: Exception) -> None:
        if row_of(error).status == 499:
            self.cancelled.inc()
        elif row_of(error) != UNFORESEEN:
            self.rejected.labels(kind_of(error)).inc()

    def picture(self, model: str, t: Timings) -> None:
        """Observes the steps of one answered picture."""
        for step, ms in (("decode", t.decode), ("queue", t.queue), ("inference", t.inference)):
            self._steps[step].labels(model).observe(ms / 1000)
        if t.explain or t.render:
            self._steps["postprocess"].labels(model).observe((t.explain + t.render) / 1000)
        self.batch_size.labels(model).observe(t.batch_size)

    def refresh(self, registry: Registry) -> None:
        """Reads gauges and counts off the registry; called about once a second."""
        self.ready.set(registry.ready[0])
        self._count(self.reload_failures, registry, registry.reload_failures)
        shown: set[tuple[str, ...]] = set()
        for status in registry.models():
            for version in status.versions:
                p = registry.get(status.name, version)
                shown.add((status.name, version, p.sha256, p.provider, p.precision))
                self._count(self.inferred.labels(status.name), p.batcher, p.batcher.items)
                self._count(self.dropped.labels(status.name), p.batcher, p.batcher.dropped)
            self.queue_depth.labels(status.name).set(status.predictor.batcher.depth)
            for histogram in (*self._steps.values(), self.batch_size):
                histogram.labels(status.name)

        for labels in self._shown | shown:
            self.info.labels(*labels).set(labels in shown)
        self._shown = shown

    def _count(self, counter: Counter, source: object, value: int) -> None:
        """Brings a counter up to a number that `source` counts itself."""
        seen = self._seen.setdefault(source, {})
        counter.inc(value - seen.get(counter, 0))
        seen[counter] = value

    def render(self) -> tuple[bytes, str]:
        """(text, content type) for Prometheus."""
        registry = self._registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        return generate_latest(registry), CONTENT_TYPE_LATEST


def endpoint_of(template: str) -> str:
    """A route's path as the label it is counted under."""
    if template in ENDPOINTS or template in QUIET:
        return template
    return (
        "/v2/*"
        if template.startswith("/v2")
        else "/docs"
        if template.startswith(("/docs", "/openapi"))
        else OTHER
    )
