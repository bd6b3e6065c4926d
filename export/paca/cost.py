"""What a network costs: parameters, and multiply-accumulates of one picture, counted from the config alone.

Counts every matrix product, convolution and both products of attention; not norms, activations or softmaxes.
The paper's "FLOPs" are these MACs.
"""

from __future__ import annotations

import dataclasses
import itertools

from torch import nn

from .clustering.learned import KERNEL
from .config import PaCaConfig, StageConfig
from .segmentation import SegmenterConfig


def parameters(model: nn.Module) -> int:
    """Learned numbers, as the paper counts them (no buffers)."""
    return sum(p.numel() for p in model.parameters())


def macs(config: PaCaConfig, size: tuple[int, int] | None = None) -> int:
    """Multiply-accumulates of one picture of `size` (H, W), by default the config's own."""
    grids = [height * width for height, width in config.grids(size)]
    dims = [stage.dim for stage in config.stages]
    total = _stem(config, size) + dims[-1] * config.num_classes
    for i, (stage, n) in enumerate(zip(config.stages, grids, strict=True)):
        total += sum(_block(stage, n, stage.owns_clustering(b)) for b in range(stage.depth))
        if i + 1 < len(dims):
            total += 9 * dims[i] * dims[i + 1] * grids[i + 1]
        if stage.source == "previous":
            before = dataclasses.replace(stage, dim=dims[i - 1], heads=1)
            total += _clustering(before, grids[i - 1])
    if config.pool == "gated":
        total += dims[-1] * grids[-1]
    elif config.pool == "cluster":
        total += config.stages[-1].clusters * (dims[-1] * (grids[-1] + 1) + grids[-1])
    if config.teacher_depths:
        total += _teacher(config, dims, grids)
    return total


def segmenter_macs(config: SegmenterConfig, size: tuple[int, int] | None = None) -> int:
    """Multiply-accumulates of a segmenter as it is served, its 1x1 convolutions on each stage's own grid."""
    trunk, width, classes = config.backbone, config.width, config.num_classes
    grids = [height * width_ for height, width_ in trunk.grids(size)]
    finest, joint = grids[0], width * len(grids)
    levels = sum(
        n * (stage.dim * width + 2 * width * width) for stage, n in zip(trunk.stages, grids, strict=True)
    )
    pooling = finest * classes * (width + joint)  # scores, then one vector a class
    attention = 2 * finest * classes * width + 2 * classes * joint * width
    end = finest * (width * width + width * classes)
    return macs(dataclasses.replace(trunk, num_classes=0), size) + levels + pooling + attention + end


def _stem(config: PaCaConfig, size: tuple[int, int] | None) -> int:
    height, width = size or (config.image_size, config.image_size)
    steps = config.patch_size.bit_length() - 1
    widths = [config.in_channels, *(config.stages[0].dim >> (steps - 1 - i) for i in range(steps))]
    total = 0
    for before, after in itertools.pairwise(widths):
        height, width = -(-height // 2), -(-width // 2)
        total += 9 * before * after * height * width
    return total


def _block(stage: StageConfig, n: int, owns: bool) -> int:
    c, m = stage.dim, stage.clusters or n
    hidden = int(c * stage.mlp_ratio)
    pooling = m * n * c if stage.clusters else 0  # z x
    attention = 2 * n * c * c + 2 * m * c * c + 2 * n * m * c  # q and proj, k and v, both products
    mlp = 2 * n * c * hidden + 9 * n * hidden
    return pooling + attention + mlp + (_clustering(stage, n) if owns else 0)


def _clustering(stage: StageConfig, n: int) -> int:
    c, m = stage.dim, stage.clusters
    return n * {
        "conv": KERNEL * KERNEL * c + c * c + c * m,
        "mlp": 4 * c * c + 4 * c * m,
        "linear": c * m,
    }.get(stage.clustering, 0)


def _teacher(config: PaCaConfig, dims: list[int], grids: list[int]) -> int:
    total = 0
    for i, (c, n, depth) in enumerate(zip(dims, grids, config.teacher_depths, strict=True)):
        mixer = n * (KERNEL * KERNEL * c + c * c)
        total += depth * mixer + n * c * config.stages[i].clusters
        if i + 1 < len(dims):
            total += 9 * n * c + 9 * c * dims[i + 1] * grids[i + 1]  # blur, then the strided convolution
            total += n * dims[i + 1] * c + mixer  # lateral and fpn
    return total
