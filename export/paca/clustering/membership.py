"""What the classic clusterings share: seeds, the step from memberships to rows, and float32 under autocast.
Nothing here clusters."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor


def evenly_spaced(points: Tensor, count: int) -> Tensor:
    """Seeds: every (N / count)-th of the points (B, N, C) in row-major order, (B, count, C). The same picture
    always gets the same seeds; with count > N some repeat."""
    n = points.shape[1]
    at = (2 * torch.arange(count, device=points.device) + 1) * n // (2 * count)
    return points.index_select(1, at)


def one_hot(index: Tensor, count: int) -> Tensor:
    """Cluster of each patch (B, N) → membership (B, count, N) of zeros and ones; an index outside 0..count-1
    belongs to no cluster."""
    return (index.unsqueeze(1) == torch.arange(count, device=index.device).view(1, -1, 1)).float()


def rows(membership: Tensor, empty_below: float = 0.5) -> Tensor:
    """Weights (B, M, N) >= 0 → assignment whose rows sum to 1 over patches; a cluster of less than
    `empty_below` patches becomes a uniform row."""
    mass = membership.sum(-1, keepdim=True)
    return torch.where(mass >= empty_below, membership / mass.clamp(min=1e-12), 1 / membership.shape[-1])


def centred(x: Tensor) -> Tensor:
    """Tokens (B, N, C) in float32 around their mean: distances are unchanged, but lose fewer digits in |a|² -
    2ab + |b|²."""
    x = x.float()
    return x - x.mean(1, keepdim=True)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(B, P, C), (B, Q, C) → |a - b|² (B, P, Q), by one matrix product; never negative."""
    products = a @ b.transpose(1, 2)
    return (a.square().sum(-1).unsqueeze(2) - 2 * products + b.square().sum(-1).unsqueeze(1)).clamp(min=0)


def full_precision(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Leaves autocast where it is on: in bfloat16 distances of neighbours would be noise."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return contextlib.nullcontext()
