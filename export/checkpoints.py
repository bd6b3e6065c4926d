"""Checkpoint file → network, whatever training script wrote it, without ever running code from the file.

`weight_files` reads the file, `unwrap` finds the weights in it, and `paca.recognise` tells which network they
belong to where the caller does not name it. This module puts them together and says what was assumed.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from service.novelty import Statistics

from . import unwrap, weight_files
from .paca.config import PaCaConfig, variant
from .paca.model import PaCaViT
from .paca.recognise import recognise
from .unwrap import Found, Misfit, Weights
from .weight_files import CheckpointError, line

__all__ = ["CheckpointError", "Loaded", "load"]


@dataclass(frozen=True)
class Loaded:
    """A network in evaluation mode and float32, and what its file says of it. notes: what was chosen or
    assumed, for the report. accuracy: measured figures, novelty: what training fitted, where the file carries
    them."""

    model: PaCaViT
    labels: tuple[str, ...] | None
    temperature: float
    sha256: str
    notes: tuple[str, ...]
    accuracy: dict[str, Any] = field(default_factory=dict)
    novelty: Statistics | None = None


def load(path: Path, name: str | None = None, num_classes: int | None = None) -> Loaded:
    """The network in the file `path`. name: the variant, None to recognise it; num_classes: what the caller
    expects, None for whatever the head has.

    Raises CheckpointError, whatever is wrong with the file or the name.
    """
    content = weight_files.read(path)
    try:
        return _load(content, name, num_classes)
    except CheckpointError as error:
        module = next((kind for kind in content.strange if kind.startswith("torch.nn.modules.")), None)
        if module:
            raise weight_files.more_than_weights(path, module) from None
        raise CheckpointError(f"{error}{weight_files.part_of_several(path)}") from None


def _load(content: weight_files.Content, name: str | None, num_classes: int | None) -> Loaded:
    metadata = content.metadata
    found = unwrap.find(content.value, lambda weights: _misfit(weights, name, metadata))
    weights = found.weights
    classes = _classes(weights)
    if num_classes and num_classes != classes:
        raise CheckpointError(f"the file's head has {classes} classes, not the {num_classes} asked for")
    config, assumed = _config(weights, name, metadata)
    model = _empty(config, classes)
    _fill(model, found)
    labels = metadata.get("paca.labels")
    return Loaded(
        model.eval(),
        tuple(json.loads(labels)) if labels else None,
        float(metadata.get("paca.temperature", 1)),
        content.sha256,
        (*found.notes, *assumed),
        json.loads(metadata.get("paca.training", "{}")).get("metrics", {}),
        Statistics.from_metadata(metadata, classes, config.stages[-1].dim),
    )


def _empty(config: PaCaConfig, classes: int) -> PaCaViT:
    """The network without weights of its own: every one comes from the file."""
    with torch.device("meta"):
        return PaCaViT(dataclasses.replace(config, num_classes=classes))


def _misfit(weights: Weights, name: str | None, metadata: dict[str, str]) -> Misfit:
    """How `weights` differ from those of the network that they are expected, or look, to be."""
    try:
        classes = _classes(weights)
        config, _ = _config(weights, name, metadata)
    except CheckpointError as error:
        return Misfit(reason=str(error))
    return _compare(_empty(config, classes), weights)


def _compare(model: PaCaViT, weights: Weights) -> Misfit:
    """BatchNorm's count of batches may be missing: evaluation does not read it."""
    own = model.state_dict()
    missing = [key for key in own.keys() - weights.keys() if not key.endswith("num_batches_tracked")]
    misshapen = [key for key in own.keys() & weights.keys() if own[key].shape != weights[key].shape]
    return Misfit(tuple(missing), tuple(weights.keys() - own.keys()), tuple(misshapen))


def _classes(weights: Weights) -> int:
    """How many classes the head has."""
    if any(key.startswith("backbone.") for key in weights):
        raise CheckpointError(
            "the file holds the backbone of a detector or segmenter (tensors backbone.*), not a classifier"
        )
    if "head.weight" not in weights:
        raise CheckpointError(
            "the file holds no classifier: there is no head.weight, so it is a backbone, or not a PaCa-ViT"
        )
    return len(weights["head.weight"])


def _config(
    weights: Weights, name: str | None, metadata: dict[str, str]
) -> tuple[PaCaConfig, tuple[str, ...]]:
    """The named variant's config; else what the file says of itself; else what its shapes say."""
    if "paca.config" in metadata:
        try:
            config = PaCaConfig.from_dict(json.loads(metadata["paca.config"]))
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"the file's own config cannot be used: {line(error)}") from None
        if name in (None, config.name):
            return config, ()
    try:
        return (
            (variant(name), ())
            if name is not None
            else recognise({key: tuple(value.shape) for key, value in weights.items()})
        )
    except (KeyError, ValueError) as error:
        raise CheckpointError(error.args[0]) from None


def _fill(model: PaCaViT, found: Found) -> None:
    """Loads strictly; CheckpointError counts and names what does not fit, and says which variant would."""
    weights = found.weights
    if not (misfit := _compare(model, weights)):
        own = model.state_dict()
        absent = {
            key: torch.zeros(own[key].shape, dtype=own[key].dtype) for key in own.keys() - weights.keys()
        }
        model.load_state_dict(weights | absent, assign=True)
        return
    place = f" (under {found.where})" if found.where else ""
    reason = f"the weights{place} do not fit {model.config.name}: {misfit}"
    try:
        fitting, _ = recognise({key: tuple(value.shape) for key, value in weights.items()})
    except ValueError:
        fitting = model.config
    if fitting.name not in ("custom", model.config.name):
        reason += f"; they look like {fitting.name}"
    raise CheckpointError(reason)
