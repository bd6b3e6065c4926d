"""Do the clusters matter? Two measures: what the network loses without its assignments, and how many clusters
it looks at."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..paca.clustering.learned import LearnedClustering
from ..paca.clustering.teacher import ClusteringTeacher
from ..paca.layout import Grid
from ..paca.model import ClusterAttention, PaCaViT, attend_explicit
from .data import Pictures
from .loop import predict


class Uniform(nn.Module):
    """In place of a clustering: the same for every patch and cluster, so that each cluster token is the mean
    token."""

    def __init__(self, clustering: nn.Module) -> None:
        super().__init__()
        self.clustering = clustering

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        found = self.clustering(x, grid)
        return torch.ones_like(found) / (found.shape[1] if competing(self.clustering) else found.shape[2])


class Another(nn.Module):
    """In place of a clustering: what it finds in the next picture of the batch."""

    def __init__(self, clustering: nn.Module) -> None:
        super().__init__()
        self.clustering = clustering

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        return self.clustering(x, grid).roll(-1, 0)


def competing(clustering: nn.Module) -> bool:
    """Whether it gives P(cluster | patch) instead of rows over patches."""
    return isinstance(clustering, LearnedClustering) and clustering.competing


class UniformTeacher(nn.Module):
    """A teacher whose maps are kept and whose assignments are uniform."""

    def __init__(self, teacher: ClusteringTeacher) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor | None]]:
        maps, assignments = self.teacher(x)
        return maps, [None if z is None else torch.full_like(z, 1 / z.shape[-1]) for z in assignments]


def with_clusterings(model: PaCaViT, instead: Callable[[nn.Module], nn.Module]) -> PaCaViT:
    """A copy of the network with `instead` of each of its clustering nets in its place."""
    changed = copy.deepcopy(model).eval()
    for i, stage in enumerate(changed.config.stages, 1):
        if stage.source == "previous":
            setattr(changed, f"clustering{i}", instead(getattr(changed, f"clustering{i}")))
    for module in list(changed.modules()):
        if isinstance(module, ClusterAttention) and module.owns_clustering:
            module.clustering = instead(module.clustering)
    return changed


def without_clusters(model: PaCaViT) -> PaCaViT:
    """A copy of the network whose every assignment is uniform; everything else is as it was."""
    blind = with_clusterings(model, Uniform)
    for name, module in list(blind.named_modules()):
        if isinstance(module, ClusteringTeacher):
            blind.set_submodule(name, UniformTeacher(module))
    return blind


def uniform_assignment_accuracy(model: PaCaViT, pictures: Pictures) -> float:
    """Accuracy (0..1) with all assignments made uniform: what is left when the clusters say nothing."""
    return accuracy(without_clusters(model), pictures)


def foreign_assignment_accuracy(model: PaCaViT, pictures: Pictures) -> float:
    """Accuracy (0..1) with every picture's assignments taken from another picture."""
    return accuracy(with_clusterings(model, Another), pictures)


def accuracy(model: PaCaViT, pictures: Pictures) -> float:
    return float((predict(model, pictures).argmax(1).numpy() == pictures.labels).mean())


@dataclass(frozen=True)
class ClusterUse:
    """One stage. in_use: clusters that get at least half of the attention an equal share would be, and whose
    row is not near uniform. effective: exp(entropy) of the attention over clusters, between 1 and `clusters`.
    rank: exp(entropy) of the singular values of an assignment, averaged over pictures: how many different
    rows it has."""

    stage: int
    clusters: int
    in_use: int
    effective: float
    rank: float


ATTENTION_SHARE = 0.5  # of 1 / M
SPREAD = 0.9  # of N; exp(entropy) of a row above this is near uniform


@torch.no_grad()
def clusters_in_use(model: PaCaViT, pictures: Pictures, limit: int = 256) -> tuple[ClusterUse, ...]:
    """One answer for each stage that clusters, from the first `limit` pictures.

    Attention on a cluster is the softmax weight it gets from all patches and heads of all blocks of its
    stage, averaged over pictures. The spread of a row is exp(entropy) over its patches, averaged over
    pictures.
    """
    watched = copy.deepcopy(model).eval()
    some = pictures.take(torch.arange(min(limit, len(pictures))).numpy())
    stages = [i for i, stage in enumerate(watched.config.stages, 1) if stage.clusters]
    totals = {i: torch.zeros(watched.config.stages[i - 1].clusters) for i in stages}
    rows: dict[int, list[Tensor]] = {i: [] for i in stages}
    for i in stages:
        blocks = getattr(watched, f"stage{i}")
        for block in blocks:
            block.attn.attend = _recorder(totals[i], len(blocks))
        blocks.register_forward_hook(lambda module, args, out, i=i: rows[i].append(out[1][0].float().cpu()))
    predict(watched, some)
    return tuple(stage_use(i, totals[i] / len(some), torch.cat(rows[i])) for i in stages)


def _recorder(total: Tensor, blocks: int):  # type: ignore[no-untyped-def]  # an Attend that also adds up what it sees
    def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        qh, kh = (t.unflatten(-1, (heads, -1)).transpose(1, 2).float() for t in (q, k))
        weights = (qh @ kh.transpose(-1, -2) * qh.shape[-1] ** -0.5).softmax(-1)  # (B, h, N, M)
        total.add_(weights.mean((1, 2)).sum(0).cpu() / blocks)
        return attend_explicit(q, k, v, heads)

    return attend


def stage_use(stage: int, attention: Tensor, z: Tensor) -> ClusterUse:
    """attention: (M,), sums to 1; z: (B, M, N)."""
    clusters, patches = z.shape[1:]
    spread = torch.special.entr(z).sum(-1).exp().mean(0)  # (M,)
    in_use = (attention >= ATTENTION_SHARE / clusters) & (spread <= SPREAD * patches)
    values = torch.linalg.svdvals(z)
    shares = values / values.sum(-1, keepdim=True)
    rank = torch.special.entr(shares).sum(-1).exp().mean()
    effective = torch.special.entr(attention).sum().exp()
    return ClusterUse(stage, clusters, int(in_use.sum()), round(float(effective), 1), round(float(rank), 1))
