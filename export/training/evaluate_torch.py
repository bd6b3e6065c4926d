"""A checkpoint scored in torch, with the measures of its clusters; the rest of `paca evaluate` is
`evaluate`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..annotate import preprocessing as preprocessing_of
from ..checkpoints import CheckpointError, load
from ..paca.model import PaCaViT
from . import served
from .cluster_use import clusters_in_use, uniform_assignment_accuracy
from .data import DataError, Pictures
from .evaluate import BATCH, Evaluation, named, timed
from .loop import predict_batch, torch_device
from .metrics import score
from .progress import Track, plainly


def evaluate_checkpoint(model: Path, data: Path, device: str = "auto", track: Track = plainly) -> Evaluation:
    """Raises DataError for a file that is no checkpoint, or one that does not name its classes."""
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
    logits, rate = timed(lambda batch: predict_batch(network, batch).numpy(), pictures, track)
    scores = score(logits, pictures.labels, loaded.labels, loaded.temperature)
    return Evaluation(
        model.name,
        named(data),
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
