"""The paper's learned clusterings: a small net scores every (cluster, patch) pair, softmax over patches makes
each row a distribution.

z = softmax_N(score(x)), paper eq. 4. All are differentiable everywhere.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..layout import Grid, to_map

KERNEL = 7  # of the convolutional clustering, as published


class ConvClustering(nn.Module):
    """Depthwise 7x7, GELU, 1x1, GELU, 1x1 to M scores (no bias in the last: a constant per row would vanish
    in the softmax)."""

    def __init__(self, dim: int, clusters: int) -> None:
        super().__init__()
        self.clustering = nn.Sequential(
            nn.Conv2d(dim, dim, KERNEL, padding=KERNEL // 2, groups=dim),
            nn.GELU(),
            nn.Conv2d(dim, dim, 1),
            nn.GELU(),
            nn.Conv2d(dim, clusters, 1, bias=False),
        )

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        return self.clustering(to_map(x, grid)).flatten(2).softmax(-1)


class MlpClustering(nn.Module):
    """Linear C → 4C, GELU, Linear 4C → M, on every patch by itself."""

    def __init__(self, dim: int, clusters: int) -> None:
        super().__init__()
        self.clustering = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, clusters))

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        return self.clustering(x).transpose(1, 2).softmax(-1)


class LinearClustering(nn.Module):
    """One Linear C → M without bias."""

    def __init__(self, dim: int, clusters: int) -> None:
        super().__init__()
        self.clustering = nn.Linear(dim, clusters, bias=False)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        return self.clustering(x).transpose(1, 2).softmax(-1)
