"""Writes what the server must know into the file itself: manifest and head weights, in `metadata_props`. The
format is the reader's, `service.artifact`."""

from __future__ import annotations

import onnx

from service.artifact import HEAD_KEY, MANIFEST_KEY, Head, Manifest, Preprocessing, StageInfo

from .paca.config import PaCaConfig
from .paca.model import PaCaViT


def preprocessing(config: PaCaConfig) -> Preprocessing:
    """How a picture becomes the network's input, at the config's square image size."""
    size = (config.image_size, config.image_size)
    return Preprocessing(size, config.resize, config.crop, config.interpolation, config.mean, config.std)


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


def annotate(proto: onnx.ModelProto, manifest: Manifest, head: Head) -> None:
    """Puts manifest and head into `proto`, replacing earlier ones, and names producer and graph."""
    kept = [p for p in proto.metadata_props if p.key not in (MANIFEST_KEY, HEAD_KEY)]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    for key, value in ((MANIFEST_KEY, manifest.to_json()), (HEAD_KEY, head.to_text())):
        proto.metadata_props.add(key=key, value=value)
    proto.producer_name = "paca-serve"
    proto.graph.name = manifest.name
