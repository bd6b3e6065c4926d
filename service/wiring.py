"""The only place where settings meet objects: `build_registry(settings)`. Everything below takes plain
arguments."""

from __future__ import annotations

from .engine import Device, Engine, GradientEngine
from .images import Limits
from .predictor import MAX_ROWS, Capacity, Predictor
from .registry import Registry
from .repository import ModelFiles
from .settings import Settings, cores

# at twice the capacity the last of them waits about twice the p99 of 0.8 capacity, however many instances
# (docs/decisions.md)
WAITING = 16
# multiply-accumulates; larger networks only answer later on CPU when pictures share a run, smaller ones
# answer more (docs/decisions.md)
SMALL = 1e9


def build_registry(settings: Settings) -> Registry:
    """A registry that loads the repository's models the way the settings say; nothing is loaded before its
    `start()`."""
    limits = Limits(max_bytes=int(settings.max_body_mb * 2**20), max_pixels=settings.max_pixels)

    def load(files: ModelFiles) -> Predictor:
        return load_predictor(files, settings, limits)

    return Registry(
        settings.models,
        load,
        precision=settings.precision,
        default=settings.default_model,
        watch=settings.watch_models,
    )


def load_predictor(files: ModelFiles, settings: Settings, limits: Limits) -> Predictor:
    """Loads, self-tests and warms one version; BadArtifact or ProviderUnavailable where it cannot serve."""
    device = Device(settings.provider, settings.device_id, settings.threads or _threads(settings))
    engine = Engine(files.model, device)
    gradients = GradientEngine(files.explain, device) if files.explain else None
    return Predictor(
        engine,
        files.name,
        files.version,
        capacity=_capacity(settings, engine),
        limits=limits,
        gradients=gradients,
    )


def _instances(settings: Settings, provider: str) -> int:
    return settings.instances or (1 if provider == "cuda" else max(1, cores() // settings.workers))


def _threads(settings: Settings) -> int:
    return max(1, cores() // (settings.workers * _instances(settings, "cpu")))


def _capacity(settings: Settings, engine: Engine) -> Capacity:
    on_cpu = 4 if engine.manifest.macs < SMALL else 1
    instances, max_batch = (
        _instances(settings, engine.provider),
        settings.max_batch or (16 if engine.provider == "cuda" else on_cpu),
    )
    admitted = (settings.queue_size or max(WAITING, 2 * instances * max_batch)) + instances * max_batch
    return Capacity(
        instances=instances,
        max_batch=max_batch,
        max_wait=settings.max_wait_ms / 1000,
        admitted=admitted,
        queue_size=admitted
        + max(settings.max_images, MAX_ROWS),  # room for the request that was admitted last
        decoders=max(2, cores() // settings.workers),
    )
