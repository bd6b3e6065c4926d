"""What makes competing clusters things rather than confetti: losses on the memberships P(cluster | patch).

A cluster should hold patches that look alike to the teacher (`reconstruction`; DINOSAUR, Seitzer et al.
2023), mean the same in every picture (`codebook`; STEGO, Hamilton et al. 2022), and end at edges
(`smoothness`; PDiscoFormer, Aniraj et al. 2024). Patches should be sure (`entropy`), every cluster used
(`balance`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn import functional as F

from ..paca.layout import Grid, to_tokens

EDGE = 0.3  # squared difference of normalised pixels at which smoothness counts 1/e
SEEDING_STEPS, SEEDING_BATCH, SEEDING_RATE = 250, 16, 5e-3


@dataclass(frozen=True)
class Coherence:
    """Weights of the losses; all 0 = off."""

    reconstruction: float = 1.0
    codebook: float = 0.5
    smoothness: float = 0.5
    entropy: float = 0.05
    balance: float = 0.3

    def __bool__(self) -> bool:
        return any(vars(self).values())


def things(fine: Tensor, deep: Tensor, grid: Grid) -> Tensor:
    """What patches of one thing have in common: (B, N, D) directions of fine and of enlarged deep features.
    fine: (B, C, h, w); deep: (B, C', h', w')."""
    enlarged = (
        F.interpolate(x.float(), size=grid, mode="bilinear", align_corners=False) for x in (fine, deep)
    )
    small, large = (F.normalize(to_tokens(x), dim=-1) for x in enlarged)
    return torch.cat([0.5 * small, large], -1).detach()


def coherence_loss(membership: Tensor, targets: Tensor, book: Tensor, x: Tensor, how: Coherence) -> Tensor:
    """membership: (B, M, H, W); targets: (B, N, D) of `things`; book: (M, D), learned; x: the pictures."""
    grid = (membership.shape[-2], membership.shape[-1])
    a = membership.float().flatten(2)  # (B, M, N)
    means = (a / (a.sum(-1, keepdim=True) + 1e-4)) @ targets
    reconstruction = (a.transpose(1, 2) @ means - targets).square().sum(-1).mean()
    shared = (a.transpose(1, 2) @ book - targets).square().sum(-1).mean()
    entropy = torch.special.entr(a).sum(1).mean()
    balance = math.log(a.shape[1]) - torch.special.entr(a.mean((0, 2))).sum()
    return (
        how.reconstruction * reconstruction
        + how.codebook * shared
        + how.smoothness * smoothness(membership.float(), F.adaptive_avg_pool2d(x, grid))
        + how.entropy * entropy
        + how.balance * balance
    )


def smoothness(membership: Tensor, x: Tensor) -> Tensor:
    """Squared differences of neighbours' memberships (B, M, H, W), less where their colours x (B, 3, H, W)
    differ."""
    total = membership.new_zeros(())
    for axis in (2, 3):
        edge = torch.exp(-x.diff(dim=axis).square().mean(1) / EDGE)
        total = total + (membership.diff(dim=axis).square().sum(1) * edge).mean()
    return total


def seed_clusters(nets: Sequence[nn.Module], inputs: list[tuple[Tensor, Grid]], targets: Tensor) -> Tensor:
    """Starts `nets` from k-means over all pictures' `targets` (P, N, D), so that a number means the same
    everywhere. inputs: what each net reads of the pictures (P, N, C), and its grid. Returns the centres."""
    count = nets[0](inputs[0][0][:1], inputs[0][1]).shape[1]
    found = KMeans(count, n_init=2, max_iter=50, random_state=0).fit(targets.flatten(0, 1).numpy())
    labels = torch.from_numpy(found.labels_).long().view(targets.shape[:2])
    generator = torch.Generator().manual_seed(0)
    for net, (x, grid) in zip(nets, inputs, strict=True):
        optimizer = torch.optim.Adam(net.parameters(), lr=SEEDING_RATE)
        for _ in range(SEEDING_STEPS):
            rows = torch.randint(0, len(x), (SEEDING_BATCH,), generator=generator)
            loss = F.nll_loss(net(x[rows], grid).clamp(min=1e-9).log(), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return torch.from_numpy(found.cluster_centers_).float()
