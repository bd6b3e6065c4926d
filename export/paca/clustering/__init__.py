"""Ways to assign N patches to M clusters, interchangeable in any stage.

The protocol is one call: tokens x (B, N, C) on a grid (H, W) → assignment z (B, M, N) whose every row sums to
1 over the N patches. A clustering knows nothing of attention or of the other clusterings; `CLUSTERINGS` maps
the names used in configs to constructors (dim, clusters). The learned ones score patches with a small net;
the classic ones (kmeans, gmm, hierarchical, dbscan) have no parameters and look at each picture's own tokens.
A class that cannot be exported says why in `not_exportable`; `softmaxes` (default 1) is how many Softmax
nodes its graph has; with `near_ties` two runtimes that round differently may assign a few patches
differently. Learned clusters may compete: the call then gives the membership P(cluster | patch), of which
`Clusters.competing` makes the assignment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from .dbscan import Dbscan
from .gmm import GaussianMixture
from .hierarchical import Hierarchical
from .kmeans import KMeans
from .learned import ConvClustering, LinearClustering, MlpClustering


class Clustering(Protocol):
    def __call__(self, x: Tensor, grid: tuple[int, int]) -> Tensor: ...


CLUSTERINGS: dict[str, Callable[[int, int], nn.Module]] = {
    "conv": ConvClustering,
    "mlp": MlpClustering,
    "linear": LinearClustering,
    "kmeans": KMeans,
    "gmm": GaussianMixture,
    "hierarchical": Hierarchical,
    "dbscan": Dbscan,
}


class Clusters(NamedTuple):
    """assignment: (B, M, N), each row sums to 1 over patches: what attention reads. membership: (B, M, N),
    P(cluster | patch), sums to 1 over clusters; None where clusters do not compete."""

    assignment: Tensor
    membership: Tensor | None = None

    @classmethod
    def competing(cls, membership: Tensor) -> Clusters:
        """Every cluster's row divided by its mass. A cluster that a picture hardly has keeps a full row: the
        patches it fits best."""
        membership = membership.float()
        return cls(membership / membership.sum(-1, keepdim=True).clamp(min=1e-9), membership)


def build_clustering(kind: str, dim: int, clusters: int, competing: bool = False) -> nn.Module:
    """A clustering net of `kind` for tokens of width `dim`; ValueError names the known kinds."""
    try:
        make = CLUSTERINGS[kind]
    except KeyError:
        raise ValueError(f"unknown clustering {kind!r}; known: {', '.join(CLUSTERINGS)}, teacher") from None
    return make(dim, clusters, competing=True) if competing else make(dim, clusters)  # type: ignore[call-arg]
