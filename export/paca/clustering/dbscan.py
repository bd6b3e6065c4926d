"""DBSCAN (Ester et al. 1996) on the tokens of one picture, as matrix products of a fixed number, so that it
batches and traces."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layout import Grid
from .membership import centred, full_precision, one_hot, rows, squared_distances


class Dbscan(nn.Module):
    """x (B, N, C) → z (B, M, N): row m is uniform over the patches of the m-th largest cluster. No
    parameters; cost about N³·log2(N): small grids only.

    A patch is core if at least `neighbours` patches, itself included, lie within eps; core patches within eps
    of each other share a cluster; another patch within eps of a core patch joins the cluster of the nearest
    one. `eps` is a distance, by default each picture's own: the median over patches of the distance to the
    `neighbours`-th nearest, so that at least half of the patches are core. The rest is noise: it has weight 0
    in every row, and so has every cluster beyond the M largest; such patches still attend to the clusters,
    but are in none. Slots without a cluster are uniform rows.

    Not differentiable: z is piecewise constant and without gradient; gradients reach x through the cluster
    means z x.
    """

    softmaxes = 0  # of the exported graph
    near_ties = True  # rounding may move a patch to another cluster

    def __init__(self, dim: int, clusters: int, neighbours: int = 5, eps: float | None = None) -> None:
        super().__init__()
        self.clusters = clusters
        self.neighbours = neighbours
        self.eps = eps

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        with full_precision(x):
            label = self.labels(centred(x.detach()))
            n = label.shape[1]
            size = one_hot(label, n).sum(-1)  # (B, N), of the cluster known by each patch
            key = size * (n + 1) - torch.arange(
                n, device=x.device
            )  # larger first, then the one with the lower name: no ties
            key = F.pad(torch.where(size > 0, key, -1.0), (0, self.clusters), value=-1.0)  # room for M > N
            name = key.topk(
                self.clusters, dim=1
            ).indices  # of a slot without cluster: a name that no patch has
            return rows((name.unsqueeze(2) == label.unsqueeze(1)).float())

    def labels(self, points: Tensor) -> Tensor:
        """Points (B, N, C) → cluster of each patch (B, N), known by its smallest core patch; -1 for noise."""
        n = points.shape[1]
        distance = squared_distances(points, points)
        distance = (distance + distance.transpose(1, 2)) / 2
        near = distance <= self._radius(distance)
        core = near.sum(2) >= self.neighbours  # (B, N)
        reach = (near & core.unsqueeze(1) & core.unsqueeze(2)).float()
        for _ in range(max(n - 1, 1).bit_length()):  # paths of length 1, 2, 4, ... >= N
            reach = (reach @ reach).clamp(max=1)
        name = reach.argmax(2)  # of a core patch: the first it can reach
        anchor = torch.where(near & core.unsqueeze(1), distance, torch.inf).argmin(
            2
        )  # the nearest core patch within eps; a core patch is its own
        attached = (near & core.unsqueeze(1)).any(2)
        return torch.where(attached, name.gather(1, anchor), -1)

    def _radius(self, distance: Tensor) -> Tensor:
        """eps², (B, 1, 1)."""
        if self.eps is not None:
            return distance.new_full((1, 1, 1), self.eps**2)
        n = distance.shape[1]
        kth = distance.topk(min(self.neighbours, n), dim=2, largest=False).values[..., -1]
        median = kth.topk(n // 2 + 1, dim=1, largest=False).values[:, -1]
        return (median * 1.001 + 1e-9).view(-1, 1, 1)  # a little more than the patch that defines it
