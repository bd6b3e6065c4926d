"""The losses on memberships fall where clusters become what they should be."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from export.paca.clustering import build_clustering
from export.training.coherence import Coherence, coherence_loss, seed_clusters, smoothness, things

NONE = Coherence(0, 0, 0, 0, 0)


def halves() -> tuple[Tensor, Tensor, Tensor]:
    """Two pictures, left and right half different: targets (2, 16, 6), and the right and a wrong membership
    of two clusters on 4x4."""
    right = torch.zeros(2, 2, 4, 4)
    right[:, 0, :, :2] = right[:, 1, :, 2:] = 1
    wrong = right.transpose(2, 3)
    fine = torch.cat([right, 1 - right], 1)[:, :3]
    return things(fine, right, (4, 4)), right, wrong


@pytest.mark.parametrize("part", ["reconstruction", "codebook"])
def test_clusters_that_hold_what_looks_alike_cost_less(part: str) -> None:
    targets, right, wrong = halves()
    book = torch.stack([targets[0, 0], targets[0, -1]])
    how = dataclasses.replace(NONE, **{part: 1.0})
    x = torch.zeros(2, 3, 16, 16)
    assert coherence_loss(right, targets, book, x, how) < 0.01 < coherence_loss(wrong, targets, book, x, how)


def test_doubt_and_unused_clusters_cost() -> None:
    targets, right, _ = halves()
    x, book = torch.zeros(2, 3, 16, 16), torch.zeros(2, targets.shape[-1])
    doubt = torch.full_like(right, 0.5)
    one = torch.stack([torch.ones(2, 4, 4), torch.zeros(2, 4, 4)], 1)
    entropy, balance = (dataclasses.replace(NONE, **{k: 1.0}) for k in ("entropy", "balance"))
    assert coherence_loss(doubt, targets, book, x, entropy) > coherence_loss(right, targets, book, x, entropy)
    assert coherence_loss(one, targets, book, x, balance) > coherence_loss(right, targets, book, x, balance)


def test_an_end_at_an_edge_costs_less_than_one_in_the_sky() -> None:
    _, right, _ = halves()
    edge = torch.zeros(2, 3, 4, 4)
    edge[..., 2:] = 3
    assert smoothness(right, edge) < 0.01 * smoothness(right, torch.zeros(2, 3, 4, 4))


def test_seeded_nets_find_the_groups_of_the_targets() -> None:
    torch.manual_seed(0)
    targets, right, _ = halves()
    groups = right.argmax(1).flatten(1)
    x = torch.nn.functional.one_hot(groups, 8).float() + 0.05 * torch.randn(2, 16, 8)
    nets = [build_clustering("conv", 8, 2, competing=True) for _ in range(2)]
    centres = seed_clusters(nets, [(x, (4, 4))] * 2, targets)
    assert centres.shape == (2, targets.shape[-1])
    found = [net(x, (4, 4)).argmax(1) for net in nets]
    assert torch.equal(found[0], found[1])
    assert all(torch.equal(f, groups) or torch.equal(f, 1 - groups) for f in found)
