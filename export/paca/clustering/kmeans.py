"""K-means (Lloyd 1982) on the tokens of one picture: evenly spaced seeds, a fixed number of steps, so that it
traces and is deterministic."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..layout import Grid
from .membership import centred, evenly_spaced, full_precision, one_hot, rows


class KMeans(nn.Module):
    """x (B, N, C) → z (B, M, N): row m is uniform over the patches nearest to centre m. No parameters; cost
    (steps + 1) · 2 · N·M·C.

    Not differentiable: the choice of the nearest centre is piecewise constant, so z is without gradient.
    Gradients reach x through the cluster tokens z x alone, which are then the exact k-means centres. In a tie
    the lower cluster wins. A cluster that loses all its patches keeps its centre; one that ends empty (always
    some, when M > N) gets a uniform row.
    """

    softmaxes = 0  # of the exported graph
    near_ties = True  # rounding may move a patch to another cluster

    def __init__(self, dim: int, clusters: int, steps: int = 8) -> None:
        super().__init__()
        self.clusters = clusters
        self.steps = steps

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        with full_precision(x):
            points = centred(x.detach())
            centres = evenly_spaced(points, self.clusters)  # (B, M, C)
            for _ in range(self.steps):
                membership = self._nearest(points, centres)
                size = membership.sum(-1, keepdim=True)
                centres = torch.where(size > 0, membership @ points / size.clamp(min=1), centres)
            return rows(self._nearest(points, centres))

    def _nearest(self, points: Tensor, centres: Tensor) -> Tensor:
        """|p - c|² is least where p·c - |c|²/2 is greatest: memberships (B, M, N)."""
        closeness = centres @ points.transpose(1, 2) - centres.square().sum(-1, keepdim=True) / 2
        return one_hot(closeness.argmax(1), self.clusters)
