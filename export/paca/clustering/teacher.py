"""The external clustering teacher (paper, section 3.4): a ConvMixer pyramid that computes the assignments of
all stages before the trunk runs.

It shares the trunk's stem, walks bottom-up through its own ConvMixer stages, then top-down like a feature
pyramid; a 1x1 convolution a stage scores the clusters. Its bottom-up maps are also added to the trunk's
tokens (done in `model.py`). BatchNorm, so freeze or train it as such.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layout import Grid

KERNEL = 7


class Residual(nn.Module):
    """x + fn(x)."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fn(x)


class BlurredDownsample(nn.Module):
    """Fixed 3x3 low-pass (1 2 1), then a 3x3 stride-2 convolution. The filter is a buffer because checkpoints
    carry it."""

    blur_filter: Tensor

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("blur_filter", (torch.outer(row, row) / 16).expand(dim, 1, 3, 3).clone())
        self.conv = nn.Conv2d(dim, out_dim, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.conv2d(x, self.blur_filter, padding=1, groups=x.shape[1]))


def conv_mixer(dim: int) -> list[nn.Module]:
    """One ConvMixer block: residual depthwise 7x7, then pointwise 1x1, each followed by GELU and BatchNorm
    (Trockman & Kolter 2022)."""
    depthwise = nn.Conv2d(dim, dim, KERNEL, padding=KERNEL // 2, groups=dim)
    return [
        Residual(nn.Sequential(depthwise, nn.GELU(), nn.BatchNorm2d(dim))),
        nn.Conv2d(dim, dim, 1),
        nn.GELU(),
        nn.BatchNorm2d(dim),
    ]


def bilinear(x: Tensor, size: Grid) -> Tensor:
    """(B, C, h, w) → (B, C, H, W), corners not aligned."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class ClusteringTeacher(nn.Module):
    """Stem map (B, C_1, H, W) → per stage: bottom-up map (B, C_s, H_s, W_s) and assignment (B, M_s, N_s),
    None where the stage does not cluster."""

    def __init__(self, dims: list[int], depths: list[int], clusters: list[int]) -> None:
        super().__init__()
        self.resize: Callable[[Tensor, Grid], Tensor] = bilinear
        self.clusters = clusters
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True), 1):
            setattr(
                self, f"block{i}", nn.Sequential(*(nn.Sequential(*conv_mixer(dim)) for _ in range(depth)))
            )
            if i < len(dims):
                down = BlurredDownsample(dim, dims[i])
                setattr(self, f"transition{i}", nn.Sequential(down, nn.GELU(), nn.BatchNorm2d(dims[i])))
                lateral = nn.Sequential(nn.Conv2d(dims[i], dim, 1), nn.GELU(), nn.BatchNorm2d(dim))
                setattr(self, f"lateral{i}", lateral)
                setattr(self, f"fpn{i}", nn.Sequential(*conv_mixer(dim)))
            if clusters[i - 1]:
                setattr(self, f"to_clusters{i}", nn.Conv2d(dim, clusters[i - 1], 1))

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor | None]]:
        count = len(self.clusters)
        bottom_up: list[Tensor] = []
        for i in range(1, count + 1):
            x = getattr(self, f"block{i}")(x)
            bottom_up.append(x)
            if i < count:
                x = getattr(self, f"transition{i}")(x)
        top_down = bottom_up[-1]
        pyramid = [top_down]
        for i in range(count - 1, 0, -1):
            size = (bottom_up[i - 1].shape[-2], bottom_up[i - 1].shape[-1])
            narrow, *rest = getattr(
                self, f"lateral{i}"
            )  # a 1x1 convolution and a resize commute; before it, it costs a quarter
            up = self.resize(narrow(top_down), size)
            for layer in rest:
                up = layer(up)
            top_down = getattr(self, f"fpn{i}")(bottom_up[i - 1] + up)
            pyramid.insert(0, top_down)
        assignments = [
            getattr(self, f"to_clusters{i}")(f).flatten(2).softmax(-1) if m else None
            for i, (f, m) in enumerate(zip(pyramid, self.clusters, strict=True), 1)
        ]
        return bottom_up, assignments
