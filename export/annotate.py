"""Writes what the server must know into the file itself: manifest and head weights, in `metadata_props`. The
format is the reader's, `service.artifact`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import onnx

from service.artifact import (
    EXPLAIN_KEY,
    HEAD_KEY,
    MANIFEST_KEY,
    ExplainManifest,
    Head,
    Manifest,
    OutputInfo,
    Preprocessing,
    StageInfo,
)
from service.novelty import NOVELTY_KEY, Statistics

if TYPE_CHECKING:  # none is needed to write, and networks need torch
    from torch import nn

    from .paca.config import PaCaConfig
    from .paca.model import PaCaViT
    from .paca.segmentation import SegmenterConfig


def preprocessing(config: PaCaConfig) -> Preprocessing:
    """How a picture becomes the network's input, at the config's square image size."""
    size = (config.image_size, config.image_size)
    return Preprocessing(size, config.resize, config.crop, config.interpolation, config.mean, config.std)


def segmenter_preprocessing(config: SegmenterConfig) -> Preprocessing:
    """The same, of a segmenter: the whole picture in proportion."""
    square = preprocessing(config.backbone)
    return replace(square, step=config.step, longest=config.longest)


def stages(config: PaCaConfig) -> tuple[StageInfo, ...]:
    """One entry a stage, with the grid at the config's image size and the graph output of its assignment;
    none where a stage reads the clusters of the stage before."""
    return tuple(
        StageInfo(
            i,
            grid,
            s.dim,
            s.depth,
            s.clusters,
            s.clustering if s.clusters else None,
            f"assignment_{i}" if i in config.shown else None,
        )
        for i, (s, grid) in enumerate(zip(config.stages, config.grids(), strict=True), 1)
    )


def head(model: PaCaViT) -> Head:
    """The classifier's weights, for exact token contributions on the host."""
    return Head(
        model.head.weight.detach().float().cpu().numpy(), model.head.bias.detach().float().cpu().numpy()
    )


def weights_id(model: nn.Module) -> str:
    """SHA-256 of the network's float weights, by name: the same in all files that are made from them."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_floating_point():
            values = tensor.detach().float().cpu().contiguous().numpy()
            digest.update(f"{name} {values.shape} ".encode())
            digest.update(values.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def outputs(
    proto: onnx.ModelProto, roles: Mapping[str, str], tolerance: Mapping[str, float]
) -> tuple[OutputInfo, ...]:
    """The graph's outputs with their shapes; roles, tolerance: by name, as in `OutputInfo`."""
    return tuple(
        OutputInfo(
            output.name,
            roles[output.name],
            tolerance.get(output.name),
            tuple(d.dim_value or d.dim_param for d in output.type.tensor_type.shape.dim),
        )
        for output in proto.graph.output
    )


def annotate(proto: onnx.ModelProto, manifest: Manifest, head: Head | None) -> None:
    """Puts manifest and head into `proto`, replacing earlier ones, and names producer and graph. head: None
    where it is not linear."""
    _write(proto, {MANIFEST_KEY: manifest.to_json(), **({HEAD_KEY: head.to_text()} if head else {})})
    proto.graph.name = manifest.name


def annotate_novelty(proto: onnx.ModelProto, statistics: Statistics) -> None:
    """Puts what novelty is measured against into `proto`, replacing an earlier one."""
    _write(proto, {NOVELTY_KEY: statistics.to_text()})


def annotate_explain(proto: onnx.ModelProto, manifest: ExplainManifest) -> None:
    """Puts the manifest of an explain.onnx into `proto`, replacing an earlier one, and names its producer."""
    _write(proto, {EXPLAIN_KEY: manifest.to_json()})


def _write(proto: onnx.ModelProto, entries: Mapping[str, str]) -> None:
    kept = [p for p in proto.metadata_props if p.key not in entries]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    for key, value in entries.items():
        proto.metadata_props.add(key=key, value=value)
    proto.producer_name = "paca-serve"
