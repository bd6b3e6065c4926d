"""What clusters are worth as segments: a map of numbers against an object's mask, and a plain grid beside it.

iou: of the best single segment with the object. ASA: achievable segmentation accuracy, each segment takes its
majority. pieces: 4-connected pieces of one number on the patch grid. No model in here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Quality:
    """Of one picture, or means over several. above_grid: ASA less that of a plain grid of as many segments.
    grid_iou: the best cell of that grid."""

    iou: float
    above_grid: float
    pieces: float
    segments: float
    grid_iou: float


def quality(labels: np.ndarray, mask: np.ndarray, valid: np.ndarray) -> Quality:
    """labels: (h, w) segment numbers on the patch grid. mask, valid: (n, n) bool, the object and the pixels
    that count."""
    n, enlarge = len(mask), -(-len(mask) // len(labels))
    segments = np.kron(labels, np.ones((enlarge, enlarge), int))[:n, :n]
    iou, asa, count = _score(segments, mask, valid)
    grid_iou, grid_asa, _ = _score(plain_grid(count, n), mask, valid)
    return Quality(iou, asa - grid_asa, pieces(labels), count, grid_iou)


def mean(found: list[Quality]) -> Quality:
    return Quality(*np.mean([list(vars(q).values()) for q in found], 0).round(3).tolist())


def pieces(labels: np.ndarray) -> int:
    """4-connected pieces of equal numbers."""
    left, count = set(np.ndindex(labels.shape)), 0
    while left:
        stack, count = [left.pop()], count + 1
        while stack:
            row, column = stack.pop()
            for near in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
                if near in left and labels[near] == labels[row, column]:
                    left.remove(near)
                    stack.append(near)
    return count


def plain_grid(count: int, n: int) -> np.ndarray:
    """(n, n): about `count` rectangles, as square as can be."""
    rows = max(1, round(count**0.5))
    columns = max(1, round(count / rows))
    v, u = np.mgrid[0:n, 0:n]
    return (v * rows // n) * columns + u * columns // n


def _score(segments: np.ndarray, mask: np.ndarray, valid: np.ndarray) -> tuple[float, float, int]:
    index = np.unique(segments[valid], return_inverse=True)[1]
    inside, size = np.bincount(index, mask[valid]), np.bincount(index)
    iou = (inside / (size + mask[valid].sum() - inside + 1e-9)).max()
    return float(iou), float(np.maximum(inside, size - inside).sum() / valid.sum()), len(size)
