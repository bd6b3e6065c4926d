"""Teaches the last tokens to speak only for what lies under them, so that contributions (CAM) point at the object and not at an idle patch.

Transformers park global evidence in patches that have nothing of their own to say (cf. Darcet et al. 2024, "registers"). Two regions a picture,
aligned to the last grid, make that costly: one pasted from another picture, whose tokens must name that picture's class, and one painted over in a
single colour, whose tokens must name none. Everything else keeps the label of the whole picture only.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SILENT, FREE = -1, -2  # token targets beside class numbers: no class, and no statement


def distract(x: Tensor, labels: Tensor, grid: int, classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """x (B, 3, S, S), labels (B,) → x with both regions, image targets (B, K) by the area that is left of each class, token targets (B, grid, grid).

    The pasted picture is the batch read backwards. Regions are whole cells; the painted one goes on top.
    """
    cell = x.shape[-1] // grid
    x, tokens = x.clone(), torch.full((len(x), grid, grid), FREE, device=x.device)
    other, other_labels = x.flip(0), labels.flip(0)
    for i in range(len(x)):
        top, left, height, width = _region(grid, grid // 3, grid * 2 // 3, generator)
        at = slice(top * cell, (top + height) * cell), slice(left * cell, (left + width) * cell)
        x[i, :, at[0], at[1]] = other[i, :, at[0], at[1]]
        tokens[i, top : top + height, left : left + width] = other_labels[i]
        top, left, height, width = _region(grid, 1, grid // 2, generator)
        row, column = torch.randint(0, x.shape[-1], (2,), generator=generator).tolist()
        x[i, :, top * cell : (top + height) * cell, left * cell : (left + width) * cell] = x[i, :, row, column, None, None]
        tokens[i, top : top + height, left : left + width] = SILENT
    pasted = (tokens >= 0).flatten(1).float().mean(1, keepdim=True)
    own = (tokens == FREE).flatten(1).float().mean(1, keepdim=True)
    target = (own * F.one_hot(labels, classes) + pasted * F.one_hot(other_labels, classes)) / (own + pasted)
    return x, target, tokens


def _region(grid: int, low: int, high: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    height, width = torch.randint(max(low, 1), max(high, 1) + 1, (2,), generator=generator).tolist()
    top = int(torch.randint(0, grid - height + 1, (), generator=generator))
    left = int(torch.randint(0, grid - width + 1, (), generator=generator))
    return top, left, height, width


def token_loss(evidence: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the tokens that have a target: their class, or the uniform distribution where they must be silent.

    evidence: (B, N, K), the head applied to every token; targets: (B, h, w) of `distract`, h·w = N.
    """
    flat, log_p = targets.flatten(), F.log_softmax(evidence.flatten(0, 1), -1)
    named, silent = flat >= 0, flat == SILENT
    wrong = -log_p[named].gather(1, flat[named, None]).sum() - log_p[silent].mean(-1).sum()
    return wrong / (named | silent).sum().clamp(min=1)
