"""What an exported model, or a checkpoint, is worth on labelled pictures. Reading is `served`'s, numbers are
`metrics`'s, printing `report`'s."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from service.engine import Device, Engine

from ..annotate import preprocessing as preprocessing_of
from ..checkpoints import CheckpointError, load
from ..paca.model import PaCaViT
from . import served
from .cluster_use import clusters_in_use, uniform_assignment_accuracy
from .data import DataError, Pictures
from .loop import predict_batch, torch_device
from .metrics import Scores, score
from .progress import Track, plainly

BATCH = 32
Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Evaluation:
    """model: the file; runs_on: "onnxruntime cpu", "torch cuda", ...; images_per_second: of the network
    alone, at `batch`. clusters: of checkpoints only, what is left without assignments and how many clusters
    are in use."""

    model: str
    data: str
    runs_on: str
    precision: str
    batch: int
    images_per_second: float
    scores: Scores
    skipped: tuple[str, ...] = ()
    clusters: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(model: Path, data: Path, device: str = "auto", track: Track = plainly) -> Evaluation:
    """Scores `model` (.onnx through the server's engine, anything else as a checkpoint) on `data`; `track`
    wraps the batches.

    Raises DataError for data that does not fit the model, BadArtifact or DataError for a model that cannot be
    read.
    """
    return (
        evaluate_onnx(model, data, device, track)
        if model.suffix == ".onnx"
        else evaluate_checkpoint(model, data, device, track)
    )


def evaluate_onnx(model: Path, data: Path, device: str = "auto", track: Track = plainly) -> Evaluation:
    """The exported file on ONNX Runtime, fed as the server feeds it: what is served."""
    engine = Engine(model, Device(device))
    manifest = engine.manifest
    pictures = served.read(data, manifest.labels, manifest.preprocessing)
    logits, rate = _timed(lambda batch: engine.run(batch).logits, pictures, track)
    scores = score(logits, pictures.labels, manifest.labels, manifest.temperature)
    return Evaluation(
        model.name,
        data.name,
        f"onnxruntime {engine.provider}",
        manifest.precision,
        BATCH,
        rate,
        scores,
        pictures.skipped,
    )


def evaluate_checkpoint(model: Path, data: Path, device: str = "auto", track: Track = plainly) -> Evaluation:
    """A checkpoint in torch, with the measures of its clusters."""
    try:
        loaded = load(model)
    except CheckpointError as error:
        raise DataError(str(error)) from None
    if loaded.labels is None:
        raise DataError(
            f"{model.name} does not name its classes; export it with --labels and evaluate the .onnx"
        )
    where = torch_device(device)
    network = loaded.model.to(where)
    pictures = served.read(data, loaded.labels, preprocessing_of(network.config))
    logits, rate = _timed(lambda batch: predict_batch(network, batch).numpy(), pictures, track)
    scores = score(logits, pictures.labels, loaded.labels, loaded.temperature)
    return Evaluation(
        model.name,
        data.name,
        f"torch {where.type}",
        "fp32",
        BATCH,
        rate,
        scores,
        pictures.skipped,
        cluster_report(network, pictures),
    )


def cluster_report(network: PaCaViT, pictures: Pictures) -> dict[str, Any]:
    """Accuracy with uniform assignments, and the use of each stage's clusters; empty for a network that does
    not cluster."""
    use = clusters_in_use(network, pictures)
    if not use:
        return {}
    return {
        "uniform_assignment_accuracy": uniform_assignment_accuracy(network, pictures),
        "stages": [asdict(stage) for stage in use],
    }


def _timed(run: Run, pictures: Pictures, track: Track) -> tuple[np.ndarray, float]:
    """(logits (n, K), pictures a second)."""
    run(pictures.images[:BATCH])  # the first run pays for memory
    batches = range(-(-len(pictures) // BATCH))
    began = time.perf_counter()
    logits = [
        run(pictures.images[i * BATCH : (i + 1) * BATCH]) for i in track(batches, len(batches), "evaluating")
    ]
    return np.concatenate(logits), len(pictures) / (time.perf_counter() - began)
