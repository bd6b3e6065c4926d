"""Checkpoint file → segmenter: the published layout (mmengine: `backbone.*`, `decode_head.*`) and our own.

Which network the tensors belong to is read from the tensors: cluster counts and widths of published files
contradict their names. Only the PaCa head is known here; other heads are refused by name. Files of
classifiers are the work of `checkpoints`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import weight_files
from .paca.config import VARIANTS, PaCaConfig
from .paca.recognise import fingerprint, recognise
from .paca.segmentation import PaCaSegmenter, SegmenterConfig, published
from .unwrap import ANCHOR, DETECTORS, INSERTED, Candidate, Weights, tensor_mappings
from .weight_files import CheckpointError, line

BACKBONE, HEAD, AUXILIARY = "backbone.", "decode_head.", "auxiliary_head."
# what tells another head, and what it is called
OTHER_HEADS = {
    "roi_head.": "a Mask R-CNN detector",
    "rpn_head.": "a detector",
    "bbox_head.": "a detector",
    "decode_head.psp_modules.": "a UPerNet segmenter",
    "decode_head.fpn_convs.": "an FPN segmenter",
}


@dataclass(frozen=True)
class LoadedSegmenter:
    """A segmenter in evaluation mode and float32, and what its file says of it; members as in
    `checkpoints.Loaded`."""

    model: PaCaSegmenter
    labels: tuple[str, ...] | None
    sha256: str
    notes: tuple[str, ...]
    accuracy: dict[str, Any] = field(default_factory=dict)


def load(path: Path, name: str | None = None) -> LoadedSegmenter | None:
    """The segmenter in the file `path`; None where it holds no head for masks or boxes beside a backbone.
    name: the variant that is expected, None for any.

    Raises CheckpointError for another head than the paper's, and for tensors that do not fit.
    """
    content = weight_files.read(path)
    found = [c for where, tensors in tensor_mappings(content.value) if (c := _candidate(where, tensors))]
    if not found:
        return None
    best = max(found, key=lambda candidate: candidate.rank)
    if best.flaw:
        raise CheckpointError(best.flaw)
    metadata = content.metadata
    model, notes = from_weights(best.weights, metadata.get("paca.config"))
    if name not in (None, model.config.name, model.config.backbone.name):
        raise CheckpointError(f"the file holds {model.config.name}, not {name}; use auto, or that name")
    labels = metadata.get("paca.labels")
    place = [f"took the weights under {best.where}"] if len(found) > 1 else []
    return LoadedSegmenter(
        model,
        tuple(json.loads(labels)) if labels else None,
        content.sha256,
        (*place, *notes),
        json.loads(metadata.get("paca.training", "{}")).get("metrics", {}),
    )


def from_weights(weights: Weights, own_config: str | None = None) -> tuple[PaCaSegmenter, tuple[str, ...]]:
    """The network with these tensors, loaded strictly, and remarks. own_config: the JSON that our own files
    carry."""
    for prefix, kind in OTHER_HEADS.items():
        if any(key.startswith(prefix) for key in weights):
            raise CheckpointError(
                f"the file holds {kind}; of segmenters only those with the paper's own PaCa head are "
                "exported, "
                "which are smaller and better (docs/segment.md)"
            )
    left_out = [key for key in weights if key.startswith(AUXILIARY)]
    weights = {k: v for k, v in weights.items() if not k.startswith(AUXILIARY)}
    config, notes = _read(own_config) if own_config else _infer(weights)
    with torch.device("meta"):
        model = PaCaSegmenter(config)
    own = model.state_dict()
    counts = {key: own[key].new_zeros((), device="cpu") for key in own if key.endswith("num_batches_tracked")}
    weights = counts | weights  # evaluation does not read them
    missing, unknown = own.keys() - weights.keys(), weights.keys() - own.keys()
    shapes = [key for key in own.keys() & weights.keys() if own[key].shape != weights[key].shape]
    for what, keys in (("missing", missing), ("unknown", unknown), ("of another shape", shapes)):
        if keys:
            raise CheckpointError(
                f"the weights do not fit {config.name}: {len(keys)} tensors {what} (such as {min(keys)})"
            )
    model.load_state_dict(
        {key: value.float() if value.is_floating_point() else value for key, value in weights.items()},
        assign=True,
    )
    if left_out:
        notes = (*notes, f"left out the auxiliary head ({len(left_out)} tensors), which only training needs")
    return model.eval(), notes


def _candidate(where: tuple[str, ...], tensors: Weights) -> Candidate | None:
    """The mapping as weights of a backbone with a head beside it, wrappers' prefixes taken off."""
    weights = {INSERTED.sub("", key).removeprefix("module."): value for key, value in tensors.items()}
    if BACKBONE + ANCHOR not in weights or not any(map(DETECTORS.fullmatch, weights)):
        return None
    return Candidate(".".join(where), weights)


def _read(text: str) -> tuple[SegmenterConfig, tuple[str, ...]]:
    try:
        return SegmenterConfig.from_dict(json.loads(text)), ()
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"the file's own config cannot be used: {line(error)}") from None


def _infer(weights: Weights) -> tuple[SegmenterConfig, tuple[str, ...]]:
    """The config that these tensors show: everything but the attention heads, which are the variant's."""
    shapes = {key: tuple(value.shape) for key, value in weights.items()}
    try:
        classes, width = shapes[f"{HEAD}conv_seg.weight"][:2]
    except (KeyError, ValueError):
        raise CheckpointError(f"the file holds no PaCa head: there is no {HEAD}conv_seg.weight") from None
    trunk = {key.removeprefix(BACKBONE): shape for key, shape in shapes.items() if key.startswith(BACKBONE)}
    try:
        found, _ = recognise({**trunk, "head.weight": (classes,)})
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    backbone = _named(found)
    config = dataclasses.replace(published(backbone, classes), width=width)
    clusters = ", ".join(str(stage.clusters) for stage in backbone.stages)
    return config, (
        f"recognised as {config.name} with {clusters} clusters in its stages; heads and picture size are "
        "that "
        "variant's, as weights do not tell them",
    )


def _named(found: PaCaConfig) -> PaCaConfig:
    """`found` under the name, and with the attention heads, of the variant that differs in cluster counts at
    most."""
    mark = fingerprint(without_counts(found))
    for variant in VARIANTS.values():
        if fingerprint(without_counts(variant)) == mark:
            stages = tuple(
                dataclasses.replace(stage, clusters=own.clusters)
                for stage, own in zip(variant.stages, found.stages, strict=True)
            )
            return dataclasses.replace(variant, stages=stages, pool="mean", num_classes=found.num_classes)
    return dataclasses.replace(found, pool="mean")


def without_counts(config: PaCaConfig) -> PaCaConfig:
    """The same network with one cluster where there are any, and an ungated mean."""
    stages = tuple(dataclasses.replace(stage, clusters=min(stage.clusters, 1)) for stage in config.stages)
    return dataclasses.replace(config, stages=stages, pool="mean")
