"""The paper's learned clusterings: a small net scores every (cluster, patch) pair, softmax over patches makes
each row a distribution.

z = softmax_N(score(x)), paper eq. 4. All are differentiable everywhere. Where clusters compete the softmax is
over clusters (slot attention, Locatello et al. 2020): the result is P(cluster | patch).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from ..layout import Grid, to_map

KERNEL = 7  # of the convolutional clustering, as published


class LearnedClustering(nn.Module, ABC):
    """Scores (B, M, N) made a distribution: over the patches, or over the clusters where they compete."""

    def __init__(self, competing: bool) -> None:
        super().__init__()
        self.competing = competing

    @abstractmethod
    def scores(self, x: Tensor, grid: Grid) -> Tensor:
        """x (B, N, C) → (B, M, N)."""

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        return self.scores(x, grid).softmax(1 if self.competing else 2)


class ConvClustering(LearnedClustering):
    """Depthwise 7x7, GELU, 1x1, GELU, 1x1 to M scores. The last has a bias only where clusters compete: a
    constant per row would vanish in a softmax over patches."""

    def __init__(self, dim: int, clusters: int, competing: bool = False) -> None:
        super().__init__(competing)
        self.clustering = nn.Sequential(
            nn.Conv2d(dim, dim, KERNEL, padding=KERNEL // 2, groups=dim),
            nn.GELU(),
            nn.Conv2d(dim, dim, 1),
            nn.GELU(),
            nn.Conv2d(dim, clusters, 1, bias=competing),
        )

    def scores(self, x: Tensor, grid: Grid) -> Tensor:
        return self.clustering(to_map(x, grid)).flatten(2)


class MlpClustering(LearnedClustering):
    """Linear C → 4C, GELU, Linear 4C → M, on every patch by itself."""

    def __init__(self, dim: int, clusters: int, competing: bool = False) -> None:
        super().__init__(competing)
        self.clustering = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, clusters))

    def scores(self, x: Tensor, grid: Grid) -> Tensor:
        return self.clustering(x).transpose(1, 2)


class LinearClustering(LearnedClustering):
    """One Linear C → M, with a bias only where clusters compete."""

    def __init__(self, dim: int, clusters: int, competing: bool = False) -> None:
        super().__init__(competing)
        self.clustering = nn.Linear(dim, clusters, bias=competing)

    def scores(self, x: Tensor, grid: Grid) -> Tensor:
        return self.clustering(x).transpose(1, 2)
