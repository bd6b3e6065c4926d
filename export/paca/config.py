"""What a PaCa-ViT is made of: frozen configs, and the published variants as one table.

Only sizes and choices live here; `model.py` turns them into layers. Names of the published variants are
upstream's, so that a checkpoint's file name is enough to find its config. Nothing here imports torch: the
command line can list variants without loading it.
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LEARNED = ("conv", "mlp", "linear")  # clusterings that score patches with a small net
POOLS = ("mean", "gated", "cluster")


@dataclass(frozen=True)
class StageConfig:
    """One stage: `depth` blocks of width `dim` on one grid.

    clusters: M, the number of clusters its blocks attend to; 0 = ordinary attention over all patches.
    clustering: a key of `clustering.CLUSTERINGS`, or "teacher" (assignments come from the external
    ConvMixer). cluster_every: which blocks own a clustering net: 0 = the first only and the others reuse it
    ("stage-wise"), k >= 1 = every k-th.
    normalise: "patches", as published: every cluster is a softmax over patches; or "clusters": clusters
    compete, a softmax over clusters at every patch, whose rows are then normalised over patches.
    source: "own" = clusters form among the stage's own tokens; "previous" = among the normed tokens of the
    stage before, on its grid; the memberships are averaged to this one.
    """

    dim: int
    depth: int
    heads: int
    clusters: int = 0
    clustering: str = "conv"
    cluster_every: int = 0
    mlp_ratio: float = 4.0
    normalise: str = "patches"
    source: str = "own"

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        if min(self.dim, self.depth, self.heads) < 1 or self.clusters < 0:
            raise ValueError(f"dim, depth and heads must be positive and clusters >= 0: {self}")
        if self.normalise not in ("patches", "clusters"):
            raise ValueError(f"normalise must be 'patches' or 'clusters', not {self.normalise!r}")
        if self.source not in ("own", "previous"):
            raise ValueError(f"source must be 'own' or 'previous', not {self.source!r}")
        if self.competes and self.clustering not in LEARNED:
            raise ValueError(f"only learned clusters can compete ({', '.join(LEARNED)}): {self.clustering}")
        if self.source == "previous" and not self.competes:
            raise ValueError("clusters of the stage before can only be read where clusters compete")

    @property
    def competes(self) -> bool:
        return self.clusters > 0 and self.normalise == "clusters"

    def owns_clustering(self, block: int) -> bool:
        """Whether block number `block` (from 0) has a clustering net of its own."""
        if not self.clusters or self.clustering == "teacher" or self.source == "previous":
            return False
        return block == 0 or (self.cluster_every > 0 and block % self.cluster_every == 0)


@dataclass(frozen=True)
class PaCaConfig:
    """A whole network. `image_size` is what it was trained at; any size runs, since nothing depends on
    absolute position.

    stem: "conv" = the paper's patch embedding (3x3 stride-2 convolutions with nothing between); "conv_norm"
    puts BatchNorm and GELU between them. pool: how the last patches become one vector: "mean", as published,
    or "gated", where a learned score gives each patch its share, or "cluster", where it gives one to each
    cluster of the last stage. teacher_depths: blocks per stage of the external ConvMixer teacher; empty =
    none. crop: share of the resized picture that is kept (centre crop);
    1.0 with `resize="stretch"` = the whole picture, aspect not kept.
    """

    name: str
    stages: tuple[StageConfig, ...]
    num_classes: int = 1000
    in_channels: int = 3
    image_size: int = 224
    patch_size: int = 4
    stem: str = "conv"
    pool: str = "mean"
    teacher_depths: tuple[int, ...] = ()
    drop_path: float = 0.0
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bicubic"
    resize: str = "shortest"
    crop: float = 0.9

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("a PaCa-ViT needs at least one stage")
        if self.patch_size < 2 or self.patch_size & (self.patch_size - 1):
            raise ValueError(f"patch_size must be a power of two >= 2, not {self.patch_size}")
        if self.stem not in ("conv", "conv_norm"):
            raise ValueError(f"stem must be 'conv' or 'conv_norm', not {self.stem!r}")
        if self.pool not in POOLS:
            raise ValueError(f"pool must be one of {', '.join(POOLS)}, not {self.pool!r}")
        if self.pool == "cluster" and not self.stages[-1].competes:
            raise ValueError("pool 'cluster' needs a last stage whose clusters compete")
        for i, stage in enumerate(self.stages):
            if stage.source == "previous" and (i == 0 or self.stages[i - 1].clusters != stage.clusters):
                raise ValueError("source 'previous' needs a stage before with as many clusters")
        if self.teacher_depths and len(self.teacher_depths) != len(self.stages):
            raise ValueError("teacher_depths needs one number a stage")
        if not self.teacher_depths and any(s.clusters and s.clustering == "teacher" for s in self.stages):
            raise ValueError("clustering 'teacher' needs teacher_depths")

    @property
    def blocks(self) -> int:
        return sum(stage.depth for stage in self.stages)

    @property
    def clusterings(self) -> int:
        """How many clusterings (softmaxes over patches) one forward pass computes."""
        own = sum(stage.owns_clustering(b) for stage in self.stages for b in range(stage.depth))
        taught = sum(1 for stage in self.stages if stage.clusters and stage.clustering == "teacher")
        return own + taught + sum(1 for stage in self.stages if stage.source == "previous")

    @property
    def shown(self) -> dict[int, int]:
        """Stages (from 1) on whose grid an assignment is put out → the stage whose attention reads it.

        A stage that reads the clusters of the stage before has no assignment of its own; what is shown of
        the stage before are then these, its last ones.
        """
        reads = {i: i for i, stage in enumerate(self.stages, 1) if stage.clusters and stage.source == "own"}
        reads |= {i - 1: i for i, stage in enumerate(self.stages, 1) if stage.source == "previous"}
        return dict(sorted(reads.items()))

    def grids(self, size: tuple[int, int] | None = None) -> tuple[tuple[int, int], ...]:
        """(H, W) of every stage's grid for a picture of `size`; each stride-2 convolution gives ceil(n /
        2)."""
        height, width = size or (self.image_size, self.image_size)
        for _ in range(self.patch_size.bit_length() - 1):
            height, width = -(-height // 2), -(-width // 2)
        grids = [(height, width)]
        for _ in self.stages[1:]:
            height, width = -(-height // 2), -(-width // 2)
            grids.append((height, width))
        return tuple(grids)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PaCaConfig:
        """The inverse of `to_dict`, also after a trip through JSON (lists for tuples)."""
        values = dict(values)
        values["stages"] = tuple(StageConfig(**stage) for stage in values["stages"])
        for key in ("teacher_depths", "mean", "std"):
            if key in values:
                values[key] = tuple(values[key])
        return cls(**values)


def _published(
    name: str,
    dims: tuple[int, ...],
    depths: tuple[int, ...],
    clusters: tuple[int, ...],
    clustering: str = "conv",
    cluster_every: int = 0,
    teacher_depths: tuple[int, ...] = (),
) -> PaCaConfig:
    heads = (2, 4, 8, 16)
    stages = tuple(
        StageConfig(dim, depth, head, m, clustering, cluster_every)
        for dim, depth, head, m in zip(dims, depths, heads, clusters, strict=True)
    )
    return PaCaConfig(name, stages, teacher_depths=teacher_depths)


_SMALL_DIMS, _BASE_DIMS = (96, 192, 320, 384), (96, 192, 384, 512)
_TINY, _SMALL, _BASE = (2, 2, 4, 2), (3, 3, 10, 3), (3, 3, 18, 3)
_100_0, _100 = (100, 100, 100, 0), (100, 100, 100, 100)

# Paper, tables 1, 4 and 5; names, depths and cluster counts as upstream publishes them.
_PUBLISHED = (
    _published("pacavit_tiny_p2cconv_100_0", _SMALL_DIMS, _TINY, _100_0),
    _published("pacavit_small_p2cconv_100_0", _SMALL_DIMS, _SMALL, _100_0),
    _published("pacavit_base_p2cconv_100_0", _BASE_DIMS, _BASE, _100_0),
    _published("pacavit_small_p2cmlp_100_0", _SMALL_DIMS, _SMALL, _100_0, "mlp"),
    _published("pacavit_small_p2cconv_2_0", _SMALL_DIMS, _SMALL, (2, 2, 2, 0)),
    _published("pacavit_small_p2cconv_49_0", _SMALL_DIMS, _SMALL, (49, 49, 49, 0)),
    _published("pacavit_small_p2cconv_49_100", _SMALL_DIMS, _SMALL, (49, 64, 81, 100)),
    _published("pacavit_small_p2cconv_100_49", _SMALL_DIMS, _SMALL, (100, 81, 64, 49)),
    _published("pacavit_small_p2cconv_100", _SMALL_DIMS, _SMALL, _100),
    _published("pacavit_small_p2cconv_100_blockwise", _SMALL_DIMS, _SMALL, _100, cluster_every=1),
    _published("pacavit_convmixer_tiny_100", _SMALL_DIMS, (2, 2, 2, 2), _100, "teacher", 0, (2, 2, 2, 2)),
    _published("pacavit_convmixer_small_100", _SMALL_DIMS, (3, 3, 7, 3), _100, "teacher", 0, (2, 2, 2, 2)),
    _published("pacavit_convmixer_base_100", _BASE_DIMS, (3, 3, 16, 3), _100, "teacher", 0, (2, 2, 4, 2)),
)

# Our own small network for 128-pixel pictures: three stages, so that the last grid (the heatmap's) is 8x8;
# and a smaller one.
_OURS = (
    PaCaConfig(
        "paca_small_128",
        (
            StageConfig(64, 2, 2, 49),
            StageConfig(128, 3, 4, 49),
            StageConfig(256, 2, 8, 0),
        ),
        num_classes=10,
        image_size=128,
        stem="conv_norm",
        pool="gated",
        drop_path=0.1,
        interpolation="bilinear",
        resize="stretch",
        crop=1.0,
    ),
    # The same with clusters that compete for every patch; the last stage attends to those of stage 2.
    PaCaConfig(
        "paca_compete_128",
        (
            StageConfig(64, 2, 2, 49),
            StageConfig(128, 3, 4, 12, normalise="clusters"),
            StageConfig(256, 2, 8, 12, normalise="clusters", source="previous"),
        ),
        num_classes=10,
        image_size=128,
        stem="conv_norm",
        pool="gated",
        drop_path=0.1,
        interpolation="bilinear",
        resize="stretch",
        crop=1.0,
    ),
    # For CIFAR-10, where clusterings are compared: grids 16x16, 8x8, 4x4.
    PaCaConfig(
        "paca_cifar_32",
        (
            StageConfig(64, 1, 2, 32),
            StageConfig(128, 2, 4, 16),
            StageConfig(192, 2, 6, 0),
        ),
        num_classes=10,
        image_size=32,
        patch_size=2,
        stem="conv_norm",
        drop_path=0.05,
        interpolation="bilinear",
        resize="stretch",
        crop=1.0,
    ),
)

VARIANTS: dict[str, PaCaConfig] = {config.name: config for config in (*_PUBLISHED, *_OURS)}


def variant(name: str, **changes: object) -> PaCaConfig:
    """The named config, with fields replaced by `changes`. KeyError names the nearest variant when there is
    none of that name."""
    try:
        config = VARIANTS[name]
    except KeyError:
        near = difflib.get_close_matches(name, VARIANTS, n=1, cutoff=0.0)
        raise KeyError(
            f"unknown variant {name!r}; did you mean {near[0]!r}? Known: {', '.join(VARIANTS)}"
        ) from None
    return dataclasses.replace(config, **changes) if changes else config  # type: ignore[arg-type]
