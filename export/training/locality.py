"""Teaches the gate and the last tokens to speak only for what lies under them, so that contributions (CAM)
point at the object, not at an idle patch.

Transformers park global evidence in patches that have nothing of their own to say (cf. Darcet et al. 2024,
"registers"). Two regions a picture, aligned to the last grid, make that costly: one pasted from another
picture, which must be named from its own patches alone as the rest must from its own, and one painted over in
a single colour, which must get no share of the pooled evidence. Within a region the gate is free: background
may stay silent, which a target for every single patch would forbid (tried: docs/decisions.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..paca.model import Features

OWN, PASTED, PAINTED = 0, 1, 2
SILENCE = 0.3  # weight of the painted region's share beside the two regions' cross-entropies
SMALLEST = 0.1  # share of the grid under which a region is not asked for its class


def distract(x: Tensor, grid: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """x (B, 3, S, S) → x with both regions, and what every cell of the last grid shows: (B, grid, grid) of
    OWN, PASTED, PAINTED.

    The pasted picture is the batch read backwards. Regions are whole cells; the painted one goes on top.
    """
    cell = x.shape[-1] // grid
    other = x.flip(0)
    x, cells = x.clone(), torch.full((len(x), grid, grid), OWN)
    for i in range(len(x)):
        top, left, height, width = _region(grid, max(grid // 3, 2), grid * 2 // 3, generator)
        at = slice(top * cell, (top + height) * cell), slice(left * cell, (left + width) * cell)
        x[i, :, at[0], at[1]] = other[i, :, at[0], at[1]]
        cells[i, top : top + height, left : left + width] = PASTED
        top, left, height, width = _region(grid, 1, grid // 2, generator)
        row, column = torch.randint(0, x.shape[-1], (2,), generator=generator).tolist()
        x[i, :, top * cell : (top + height) * cell, left * cell : (left + width) * cell] = x[
            i, :, row, column, None, None
        ]
        cells[i, top : top + height, left : left + width] = PAINTED
    return x, cells.to(x.device)


def _region(grid: int, low: int, high: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    low, high = min(max(low, 1), grid), min(max(high, low, 1), grid)
    height, width = torch.randint(low, high + 1, (2,), generator=generator).tolist()
    top = int(torch.randint(0, grid - height + 1, (), generator=generator))
    left = int(torch.randint(0, grid - width + 1, (), generator=generator))
    return top, left, height, width


def region_loss(found: Features, head: nn.Linear, labels: Tensor, cells: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy of each region, pooled over its own patches, for its own picture; and the painted
    region's share, -log(1 - share).

    found: of the pictures of `distract`; labels: (B,) of the batch before it; cells: (B, h, w). With a mean
    pool the last term is a constant.
    """
    tokens, shares, cells = found.tokens[-1].float(), found.shares.float(), cells.flatten(1)
    total = shares.new_zeros(())
    for region, names in ((OWN, labels), (PASTED, labels.flip(0))):
        mask = (cells == region).float()  # (B, N)
        asked = mask.mean(1) >= SMALLEST
        pooled = (tokens * mask[..., None]).mean(1) / (shares * mask).sum(1, keepdim=True).clamp(min=1e-6)
        if asked.any():
            total = total + 0.5 * F.cross_entropy(
                head(pooled[asked]), names[asked], label_smoothing=smoothing
            )
    painted = (shares * (cells == PAINTED)).sum(1).clamp(max=0.999)
    return total - SILENCE * torch.log1p(-painted).mean()
