"""The only place where settings meet objects: `build_registry(settings)`. Everything below it takes plain
arguments.

Cores are counted once for the machine. By default each model may use all of them, so that one alone is as
fast as it can be; runs of several models share one `Room`, so that together they use no more than the
hungriest would alone. Gradient passes of all models share another one: one pass at a time.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

from . import onnx_file
from .artifact import Manifest
from .batcher import Room
from .engine import Device, Engine, GradientEngine
from .errors import BadArtifact
from .images import Limits
from .precision import load_best
from .predictor import MAX_ROWS, Capacity, Policy, Predictor
from .providers import PROVIDERS
from .registry import Registry
from .repository import ModelFiles
from .session import usable
from .settings import ModelSettings, Settings, cores

# at twice the capacity the last of them waits about twice the p99 of 0.8 capacity, however many instances
# (docs/decisions.md)
WAITING = 16


@dataclass(frozen=True)
class Shared:
    """What all models of a process share: what is accepted, and the cores they run on."""

    policy: Policy
    runs: Room
    gradient_runs: Room = field(default_factory=lambda: Room(1))


def build_registry(settings: Settings) -> Registry:
    """A registry that loads the repository's models the way the settings say; nothing is loaded before its
    `start()`."""
    limits = Limits(max_bytes=int(settings.max_body_mb * 2**20), max_pixels=settings.max_pixels)
    policy = Policy(limits, settings.novelty_threshold, settings.max_map_pixels)
    shared = Shared(policy, Room(max(1, cores() // settings.workers)))

    def load(files: ModelFiles) -> Predictor:
        return load_predictor(files, settings, shared)

    return Registry(
        settings.models,
        load,
        precision=settings.precision,
        default=settings.default_model,
        watch=settings.watch_models,
    )


def load_predictor(files: ModelFiles, settings: Settings, shared: Shared) -> Predictor:
    """Loads, self-tests and warms one version with its own settings. BadArtifact where its files cannot
    serve, ProviderUnavailable where its device is not here, EngineFailure where memory or the device
    fails."""
    if files.config:
        settings = settings.for_model(ModelSettings.read(files.config))

    def load(files: ModelFiles, provider: str) -> Predictor:
        device = Device(provider, settings.device_id, settings.threads or _threads(settings))
        engine = Engine(files.model, device)
        _check_siblings(files, engine.manifest)
        return Predictor(
            engine,
            files.name,
            files.version,
            capacity=_capacity(settings, engine, device, shared),
            policy=shared.policy,
            gradients=GradientEngine(files.explain, device) if files.explain else None,
        )

    predictor, choice = load_best(files, settings.precision, usable(settings.provider), load)
    predictor.precision_reason = choice.reason
    return predictor


def _check_siblings(files: ModelFiles, manifest: Manifest) -> None:
    """BadArtifact where a version holds files that were made from different weights."""
    for path in files.siblings:
        with suppress(BadArtifact):  # one that is not served and cannot be read says nothing
            other = Manifest.from_metadata(onnx_file.metadata(path)).weights_id
            if other != manifest.weights_id:
                break
    else:
        return
    raise BadArtifact(
        f"{files.model.name} and {path.name} were made from different weights; export both again with `paca "
        "export`"
    )


def _instances(settings: Settings, provider: str) -> int:
    most = 1 if PROVIDERS[provider].one_instance else max(1, cores() // settings.workers)
    return settings.instances or most


def _threads(settings: Settings) -> int:
    return max(1, cores() // (settings.workers * _instances(settings, "cpu")))


def _capacity(settings: Settings, engine: Engine, device: Device, shared: Shared) -> Capacity:
    row = PROVIDERS[engine.provider]
    instances = _instances(settings, row.name)
    max_batch = settings.max_batch or row.max_batch(engine.manifest.macs)
    admitted = (settings.queue_size or max(WAITING, 2 * instances * max_batch)) + instances * max_batch
    return Capacity(
        instances=instances,
        max_batch=max_batch,
        max_wait=settings.max_wait_ms / 1000,
        admitted=admitted,
        queue_size=admitted
        + max(settings.max_images, MAX_ROWS),  # room for the request that was admitted last
        decoders=max(2, cores() // settings.workers),
        runs=None if row.one_instance else shared.runs.share(device.threads, instances),
        gradient_runs=None if row.one_instance else shared.gradient_runs.share(1, 1),
    )
