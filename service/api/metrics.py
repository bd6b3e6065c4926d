"""Every Prometheus metric, by name. The core returns timings and counts and knows no metric; here they are
observed.

Every series exists from the start, so that no request, whatever it says, can add one: labels are the routes
of the app, statuses and loaded models only. With several workers each process writes its numbers into files
of PROMETHEUS_MULTIPROC_DIR and any of them answers for all.
"""

from __future__ import annotations

import logging
import os
from collections import Counter as Counts
from collections.abc import Iterable
from typing import Literal

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
from ..results import Classification, Result
from ..version import this_build
from .answer_log import AnswerLog
from .context import Context
from .problems import STATUS, UNFORESEEN, kind_of, row_of

disable_created_metrics()  # no dashboard wants a second series for each counter
access = logging.getLogger("paca.access")
log = logging.getLogger("paca.metrics")
# Whatever has no route of its own in the API: pages, documents, and paths that are not there.
OTHER = "other"
CODES = sorted({200, UNFORESEEN.status, *(row.status for row in STATUS.values())})
REASONS = sorted({kind_of(kind("")) for kind in STATUS})
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
MAX_CLASSES = 20  # of a model that have a series of their own
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


QUEUES = ("pictures", "gradients")  # of a model: fields of `registry.ModelCounters`
# What the queues count, as fields of `batcher.Counters`: metric and help.
COUNTS = {
    "items": ("inferred", "Items that went through the engine: pictures, or explained classes."),
    "runs": ("runs", "Runs of the engine."),
    "dropped": ("dropped", "Items that did not run, because their caller had left."),
    "expired": ("expired", "Items whose deadline passed."),
    "retried": ("retried", "Items whose run failed, and that were run once more, alone."),
    "failed": ("engine_failures", "Items that failed again when they were alone."),
    "rejected": ("queue_full", "Items refused because the queue was full."),
}
STEPS = {
    "decode": "decoding and preprocessing one picture",
    "queue": "waiting for the engine",
    "inference": "a run of the model",
    "postprocess": "computing maps and drawing pictures",
}


class Metrics:
    """The metrics of one app."""

    def __init__(self, timed: Iterable[str] = (), counted: Iterable[str] = ()) -> None:
        """timed, counted: endpoints, as the templates of their paths, whose requests are timed and counted,
        or counted only. All others count as "other"."""
        self._registry = CollectorRegistry()
        self._timed = frozenset(timed)
        self._endpoints = self._timed | frozenset(counted)
        self._count_requests()
        self._count_models()
        build = self._gauge(
            "build_info", "What runs here: 1.", ("version", "commit", "onnxruntime"), "livemax"
        )
        version = this_build()
        build.labels(version.version, version.commit or "", version.onnxruntime or "").set(1)
        self._seen: dict[Counter, int] = {}
        self._shown: set[tuple[str, ...]] = set()
        self._complained = ""

    def _count_requests(self) -> None:
        self.requests = self._counter(
            "requests", "Requests answered, by route and status.", "endpoint", "code"
        )
        self.request_seconds = self._histogram(
            "request_seconds", "Seconds from headers to answer.", "endpoint", SECONDS
        )
        self.rejected = self._counter("rejected", "Requests refused, by reason.", "reason")
        self.answers_lost = self._counter("answers_lost", "Entries that the answer log could not take.")
        self.cancelled = self._counter("cancelled", "Requests whose caller left before the answer.")
        self.in_flight = self._gauge("in_flight", "Requests being answered.")
        for endpoint in (*self._endpoints, OTHER):
            for code in CODES:
                self.requests.labels(endpoint, code)
        for endpoint in self._timed:
            self.request_seconds.labels(endpoint)
        for reason in REASONS:
            self.rejected.labels(reason)

    def _count_models(self) -> None:
        self.reload_failures = self._counter(
            "reload_failures", "New model versions that could not be loaded."
        )
        self.ready = self._gauge("ready", "Server processes that are ready.")
        self.info = self._gauge(
            "model_info",
            "Models: 1 while loaded, with the provider in use.",
            ("model", "version", "sha256", "provider", "precision"),
            "livemax",
        )
        self.predicted = self._counter("predicted", "Pictures by their top class.", "model", "class")
        self.top_score = self._histogram("top_score", "Score of the top class.", "model", SHARES)
        self.novelty = self._histogram("novelty", "Novelty of the picture.", "model", SHARES)
        self.novel = self._counter("novel", "Pictures that were called novel.", "model")
        self._classes: dict[str, set[str]] = {}
        self.queue_depth = self._gauge("queue_depth", "Items waiting for the engine.", ("model", "queue"))
        self._counts = {
            field: self._counter(name, words, "model", "queue") for field, (name, words) in COUNTS.items()
        }
        self._steps = {
            step: self._histogram(f"{step}_seconds", f"Seconds of {words}.", "model", SECONDS)
            for step, words in STEPS.items()
        }
        self.batch_size = self._histogram(
            "batch_size", "Pictures in the run that answered, one sample a picture.", "model", BATCHES
        )

    def _counter(self, name: str, words: str, *labels: str) -> Counter:
        return Counter(f"paca_{name}", words, labels, registry=self._registry)

    def _histogram(self, name: str, words: str, label: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"paca_{name}", words, [label], buckets=buckets, registry=self._registry)

    def _gauge(
        self,
        name: str,
        words: str,
        labels: tuple[str, ...] = (),
        mode: Literal["livesum", "livemax"] = "livesum",
    ) -> Gauge:
        return Gauge(f"paca_{name}", words, labels, registry=self._registry, multiprocess_mode=mode)

    def request(self, template: str, context: Context, seconds: float) -> None:
        """Counts one answered request; `template`: the route's path."""
        endpoint = template if template in self._endpoints else OTHER
        status = context.status or 499  # no answer at all: the connection was cut
        self.requests.labels(endpoint, status if status in CODES else UNFORESEEN.status).inc()
        if endpoint in self._timed:
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

    def picture(self, model: str, result: Result) -> None:
        """Observes the steps of one answered picture, and of a classified one its class and novelty."""
        t = result.timings
        for step, ms in (("decode", t.decode), ("queue", t.queue), ("inference", t.inference)):
            self._steps[step].labels(model).observe(ms / 1000)
        if t.explain or t.render:
            self._steps["postprocess"].labels(model).observe((t.explain + t.render) / 1000)
        self.batch_size.labels(model).observe(t.batch_size)
        if isinstance(result, Classification):
            self._classified(model, result)

    def _classified(self, model: str, result: Classification) -> None:
        best = result.predictions[0]
        self.top_score.labels(model).observe(best.score)
        self.predicted.labels(model, self._class_label(model, best.label)).inc()
        if result.novelty:
            self.novelty.labels(model).observe(result.novelty.score)
            if result.novelty.is_novel:
                self.novel.labels(model).inc()

    def _class_label(self, model: str, label: str) -> str:
        """The class as a metric names it: each of the first MAX_CLASSES classes that a model answers has its
        own series, all others count as OTHER."""
        known = self._classes.setdefault(model, set())
        if label not in known and len(known) < MAX_CLASSES:
            known.add(label)
        return label[:100] if label in known else OTHER

    def refresh(self, registry: Registry, answers: AnswerLog | None) -> None:
        """Reads gauges and counts off the registry; called about once a second. Never raises: where numbers
        cannot be written, the old ones stay, and it is said once."""
        try:
            self._refresh(registry)
            self._raise_to(self.answers_lost, answers.lost if answers else 0)
            self._complained = ""
        except Exception as error:  # the files of several workers fail in whatever way the disk does
            if str(error) != self._complained:
                log.exception("metrics cannot be brought up to date")
            self._complained = str(error)

    def _refresh(self, registry: Registry) -> None:
        self.ready.set(registry.ready[0])
        self._raise_to(self.reload_failures, registry.reload_failures)
        loaded: set[tuple[str, ...]] = set()
        depths: Counts[tuple[str, str]] = Counts()
        for model in registry.models():
            for version in model.versions:
                p = registry.get(model.name, version)
                loaded.add((p.name, p.version, p.sha256, p.provider, p.precision))
                depths[p.name, QUEUES[0]] += p.batcher.depth
                depths[p.name, QUEUES[1]] += p.gradient_batcher.depth if p.gradient_batcher else 0
            for histogram in (*self._steps.values(), self.batch_size, self.top_score):
                histogram.labels(model.name)
            labels = model.predictor.manifest.labels
            for label in (*(labels if len(labels) <= MAX_CLASSES else ()), OTHER):
                self.predicted.labels(model.name, label[:100])
            if model.predictor.novelty:
                self.novelty.labels(model.name)
                self.novel.labels(model.name)
        for name, counters in registry.counters().items():
            for queue in QUEUES:
                self.queue_depth.labels(name, queue).set(depths[name, queue])
                for field, counter in self._counts.items():
                    self._raise_to(counter.labels(name, queue), getattr(getattr(counters, queue), field))
        for labels in self._shown | loaded:
            self.info.labels(*labels).set(labels in loaded)
        self._shown = loaded

    def _raise_to(self, counter: Counter, value: int) -> None:
        """Brings a counter up to a number that is counted elsewhere."""
        counter.inc(value - self._seen.get(counter, 0))
        self._seen[counter] = value

    def render(self) -> tuple[bytes, str]:
        """(text, content type) for Prometheus."""
        registry = self._registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        return generate_latest(registry), CONTENT_TYPE_LATEST
