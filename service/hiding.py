"""Hiding places of a picture from the network, for methods and checks that ask what a place is worth.

Hidden is blurred, not blackened: black is itself a sight that networks answer to. Inputs are tensors as the
graph takes them, (H, W, 3) uint8 or (3, H, W) float32. Who runs the network is `predictor`.
"""

from __future__ import annotations

import numpy as np

from .geometry import resample, smooth

GRID = 16  # cells along a side of the regions made here


def blurred(tensor: np.ndarray) -> np.ndarray:
    """The picture without detail: every channel averaged over a sixth of the longer side, twice."""
    channels = np.moveaxis(tensor, -1, 0) if _rows_first(tensor) else tensor
    side = max(channels.shape[1:]) // 6 | 1
    soft = np.stack([smooth(smooth(channel.astype(np.float32), side), side) for channel in channels])
    soft = np.moveaxis(soft, 0, -1) if _rows_first(tensor) else soft
    return np.round(soft).astype(np.uint8) if _rows_first(tensor) else soft.astype(tensor.dtype)


def hidden(tensor: np.ndarray, soft: np.ndarray, region: np.ndarray) -> np.ndarray:
    """The picture where a region is taken from `soft`. region: (h, w) bool, cells over the whole picture."""
    height, width = tensor.shape[:2] if _rows_first(tensor) else tensor.shape[1:]
    down = np.arange(height) * region.shape[0] // height
    across = np.arange(width) * region.shape[1] // width
    place = region[np.ix_(down, across)]
    return np.where(place[..., None] if _rows_first(tensor) else place, soft, tensor)


def cell(row: int, column: int, cells: int) -> np.ndarray:
    """The region of one cell of a `cells` x `cells` grid."""
    region = np.zeros((cells, cells), bool)
    region[row, column] = True
    return region


def strongest(values: np.ndarray, part: float) -> np.ndarray:
    """(GRID, GRID) bool: the cells where a map is largest, `part` of the picture; only where it is positive.

    values: (h, w), any grid. Equal cells count in reading order.
    """
    cells = resample(values.astype(np.float32), (GRID, GRID)).ravel()
    count = round(part * cells.size)
    region = np.zeros(cells.size, bool)
    region[np.argsort(-cells, kind="stable")[:count]] = True
    return (region & (cells > 0)).reshape(GRID, GRID)


def elsewhere(region: np.ndarray, count: int) -> list[np.ndarray]:
    """`count` regions of the same shape at random places of the picture, the same for equal sizes.

    Each is the region pushed by a random step, around the picture's edges, so it hides as much in one piece
    as the region does. Steps that leave more than half of it where it was are drawn again, up to 20 times.
    """
    random = np.random.default_rng(0)
    pushed = []
    for _ in range(count):
        for _ in range(20):
            there = np.roll(region, tuple(random.integers(0, region.shape)), axis=(0, 1))
            if (there & region).sum() <= region.sum() / 2:
                break
        pushed.append(there)
    return pushed


def _rows_first(tensor: np.ndarray) -> bool:
    """Whether rows and columns are the first two axes: (H, W, 3); else they are the last two: (3, H, W)."""
    return tensor.dtype == np.uint8
