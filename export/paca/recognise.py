"""Which network a set of weights belongs to, told from the names and shapes of its tensors alone.

Everything but the attention heads and the picture size leaves a trace in the shapes; those two come from the
named variant of the same shape, or from defaults, and the caller is told. Reading files is
`export.checkpoints`'s work.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from itertools import count, takewhile

from .config import VARIANTS, PaCaConfig, StageConfig

Shapes = Mapping[str, tuple[int, ...]]
HEADS = (2, 4, 8, 16)  # of every published variant, by stage
POOLS = {"pool.score.weight": "gated", "pool.cluster_score.weight": "cluster"}


class Unrecognised(ValueError):
    """The tensors are not those of a PaCa-ViT; the message says what is odd."""


def recognise(shapes: Shapes) -> tuple[PaCaConfig, tuple[str, ...]]:
    """The config of the network with these tensors, and remarks on what had to be assumed. Unrecognised where
    they fit none."""
    try:
        found = _infer(shapes)
    except KeyError as error:
        raise Unrecognised(f"these are not the weights of a PaCa-ViT: there is no {error.args[0]}") from None
    for named in VARIANTS.values():
        if fingerprint(named) == fingerprint(found):
            config = dataclasses.replace(named, num_classes=found.num_classes)
            return config, (
                f"recognised as {named.name}; heads and picture size are that variant's, as weights do not "
                "tell them",
            )
    heads = tuple(stage.heads for stage in found.stages)
    return found, (
        f"no published variant has these shapes; assumed {heads} heads and {found.image_size} px: name the "
        "variant if that is wrong",
    )


def fingerprint(config: PaCaConfig) -> tuple[object, ...]:
    """What tensors can tell of a config, bar the number of classes."""
    stages = tuple(
        (
            s.dim,
            s.depth,
            int(s.dim * s.mlp_ratio),
            s.clusters,
            s.clusters and s.clustering,
            [s.owns_clustering(b) for b in range(s.depth)],
        )
        for s in config.stages
    )
    stem = config.stem if config.patch_size > 2 else "conv"  # a single convolution has no norm between
    sources = tuple((s.normalise, s.source) for s in config.stages)
    return stages, sources, config.in_channels, config.patch_size, stem, config.pool, config.teacher_depths


def _infer(shapes: Shapes) -> PaCaConfig:
    stages = tuple(_stage(shapes, i) for i in _numbers(shapes, "stage{}.0.norm1_before.weight", 1))
    if not stages:
        raise KeyError("stage1.0.norm1_before.weight")
    convolutions = sorted(
        (int(i), shape)
        for i, shape in _groups(shapes, r"patch_embed\.proj\.(\d+)\.weight")
        if len(shape) == 4
    )
    first = convolutions[0][1] if convolutions else shapes["patch_embed.proj.weight"]
    return PaCaConfig(
        "custom",
        stages,
        num_classes=shapes["head.weight"][0],
        in_channels=first[1],
        patch_size=2 ** max(len(convolutions), 1),
        pool=next((pool for name, pool in POOLS.items() if name in shapes), "mean"),
        stem="conv_norm" if "patch_embed.proj.1.running_mean" in shapes else "conv",
        teacher_depths=tuple(
            len(_numbers(shapes, f"paca_teacher.block{i}.{{}}.1.weight"))
            for i in _numbers(shapes, "paca_teacher.block{}.0.1.weight", 1)
        ),
    )


def _stage(shapes: Shapes, number: int) -> StageConfig:
    prefix = f"stage{number}"
    blocks = _numbers(shapes, f"{prefix}.{{}}.norm1_before.weight")
    (dim,) = shapes[f"{prefix}.0.norm1_before.weight"]
    hidden = shapes[f"{prefix}.0.mlp.fc1.weight"][0]
    heads = HEADS[number - 1] if number <= len(HEADS) and dim % HEADS[number - 1] == 0 else 1
    clusters, kind, every = 0, "conv", 0
    before, own = f"clustering{number}", f"{prefix}.0.attn.clustering"
    source = "previous" if any(key.startswith(f"{before}.") for key in shapes) else "own"
    nets = f"{before if source == 'previous' else own}.clustering"
    if f"{prefix}.0.attn.cluster_norm.weight" in shapes:
        taught = shapes.get(f"paca_teacher.to_clusters{number}.weight")
        clusters, kind = (taught[0], "teacher") if taught else _clustering(shapes, nets)
        owners = [
            b for b in blocks if any(key.startswith(f"{prefix}.{b}.attn.clustering.") for key in shapes)
        ]
        every = owners[1] if len(owners) > 1 else 0
    competes = source == "previous" or {f"{nets}.4.bias", f"{nets}.bias"} & set(shapes)
    normalise = "clusters" if competes else "patches"
    return StageConfig(dim, len(blocks), heads, clusters, kind, every, hidden / dim, normalise, source)


def _clustering(shapes: Shapes, prefix: str) -> tuple[int, str]:
    """Clusters and kind of the clustering net with tensors under `prefix`."""
    if f"{prefix}.4.weight" in shapes:
        return shapes[f"{prefix}.4.weight"][0], "conv"
    if f"{prefix}.2.weight" in shapes:
        return shapes[f"{prefix}.2.weight"][0], "mlp"
    return shapes[f"{prefix}.weight"][0], "linear"


def _numbers(shapes: Shapes, name: str, start: int = 0) -> list[int]:
    """start, start + 1, ... as long as the tensor `name` with that number exists."""
    return list(takewhile(lambda i: name.format(i) in shapes, count(start)))


def _groups(shapes: Shapes, pattern: str) -> list[tuple[str, tuple[int, ...]]]:
    return [(match[1], shape) for key, shape in shapes.items() if (match := re.fullmatch(pattern, key))]
