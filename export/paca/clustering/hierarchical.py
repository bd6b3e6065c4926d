"""Agglomerative clustering (Ward 1963) of the tokens of one picture down to M clusters.

Merging one pair at a time would take N - M steps. Ward's linkage is reducible, so pairs that are each other's
nearest may all be merged in one round without changing the tree (Murtagh & Contreras 2012); the tree is built
to its root and cut where M clusters are left.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..layout import Grid
from .membership import centred, full_precision, one_hot, rows


class Hierarchical(nn.Module):
    """x (B, N, C) → z (B, M, N): row m is uniform over the patches of cluster m, clusters in the order of
    their first patch. No parameters.

    Cost: each round N_r²·C for the N_r clusters left, about ten rounds that shrink by a third or more, hence
    about 3·N²·C; N - 1 rounds in the worst case. Not differentiable: z is piecewise constant and without
    gradient; gradients reach x through the cluster tokens z x, which are the cluster means. With M >= N every
    patch is its own cluster and the rows left over are uniform.
    """

    not_exportable = (
        "hierarchical clustering merges in a number of rounds that depends on the picture, which a static "
        "graph cannot hold; "
        "train with conv, mlp, linear, kmeans or gmm to export"
    )

    def __init__(self, dim: int, clusters: int) -> None:
        super().__init__()
        self.clusters = clusters

    @torch.no_grad()
    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        with full_precision(x):
            parent, height = ward_tree(centred(x))
            return rows(one_hot(cut(parent, height, self.clusters), self.clusters))


def ward_tree(points: Tensor) -> tuple[Tensor, Tensor]:
    """Points (B, N, C) → for each patch j, the smaller-numbered patch whose cluster swallowed the one j
    stands for, and the cost of that merge.

    A cluster is known by its smallest patch. parent (B, N) int64 and height (B, N); patch 0, the root, is its
    own parent at height infinity.
    """
    batch, n, _ = points.shape
    device = points.device
    parent = torch.arange(n, device=device).expand(batch, n).clone()
    height = torch.full((batch, n), torch.inf, device=device)
    centre, size = points, torch.ones(batch, n, device=device)
    # (B, clusters left): the patch each cluster is known by, ascending; n where a picture has fewer clusters
    # than others
    name = parent.clone()
    for _ in range(n - 1):  # at least one merge a round
        if name.shape[1] == 1:
            break
        here = torch.arange(name.shape[1], device=device)
        lowest, nearest = _ward_cost(centre, size, name == n).min(2)
        first = lowest.argmin(
            1, keepdim=True
        )  # the cheapest pair of all is merged in any case: rounding cannot stop the loop
        nearest = nearest.scatter(1, nearest.gather(1, first), first)
        mutual = (nearest.gather(1, nearest) == here) & lowest.isfinite()
        swallowed, keeps = mutual & (nearest < here), mutual & (nearest > here)
        who = torch.where(swallowed, name, n)
        parent = _put(parent, who, name.gather(1, nearest))
        height = _put(height, who, lowest)
        partner = size.gather(1, nearest) * keeps
        weight = (partner / (size + partner).clamp(min=1)).unsqueeze(2)
        centre = torch.lerp(centre, centre.gather(1, nearest.unsqueeze(2).expand_as(centre)), weight)
        size = size + partner
        left = torch.where(swallowed, n, name)
        order = left.argsort(1)[:, : int((left < n).sum(1).max())]  # the survivors first, by name
        name, size = left.gather(1, order), size.gather(1, order)
        centre = centre.gather(1, order.unsqueeze(2).expand(-1, -1, centre.shape[2]))
    return parent, height


def _ward_cost(centre: Tensor, size: Tensor, absent: Tensor) -> Tensor:
    """How much the sum of squares grows if two clusters merge, (B, K, K); infinite for a cluster with itself
    and wherever one is absent."""
    norm, one = (
        centre.square().sum(2, keepdim=True).masked_fill(absent.unsqueeze(2), torch.inf),
        torch.ones_like(centre[..., :1]),
    )
    cost = torch.cat([centre, norm, one], 2) @ torch.cat([-2 * centre, one, norm], 2).transpose(
        1, 2
    )  # |a|² - 2ab + |b|² in one product
    inverse = 1 / size
    cost /= inverse.unsqueeze(2) + inverse.unsqueeze(1)
    cost.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    return cost


def _put(target: Tensor, at: Tensor, values: Tensor) -> Tensor:
    """target (B, N) with values written at the columns `at`; a column N is nowhere."""
    room = torch.cat([target, target[:, :1]], 1)
    return room.scatter(1, at, values)[:, :-1]


def cut(parent: Tensor, height: Tensor, clusters: int) -> Tensor:
    """The tree of `ward_tree` cut where min(clusters, N) clusters are left: cluster number of each patch (B,
    N), in the order of first patches."""
    n = parent.shape[1]
    merges = max(n - clusters, 0)
    order = height.sort(dim=1, stable=True).indices
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(n, device=order.device).expand_as(order))
    root = torch.where(rank < merges, parent, torch.arange(n, device=parent.device))
    for _ in range(max(n - 1, 1).bit_length()):
        root = root.gather(1, root)
    is_root = root == torch.arange(n, device=parent.device)
    return (is_root.cumsum(1) - 1).gather(1, root)
