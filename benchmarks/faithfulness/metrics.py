"""What makes one map better than another, beside what `paca evaluate --explain` measures too: plain numpy
functions of maps and regions.

Maps are compared on one grid of `cells` (H, W); the higher the number, the more a place is said to speak for
the class.
"""

from __future__ import annotations

import numpy as np

from export.training.map_metrics import area, boxes, parts, points, ranking, revealed, spearman
from service.geometry import resample

__all__ = ["area", "boxes", "parts", "points", "ranking", "revealed", "spearman"]


def sums(values: np.ndarray, patches: int) -> np.ndarray:
    """(patches, patches): what the map adds up to in each square of the picture; the map's sides must be
    multiples of `patches`."""
    height, width = values.shape
    return values.reshape(patches, height // patches, patches, width // patches).sum((1, 3))


def energy(values: np.ndarray, region: np.ndarray) -> float:
    """The share of the positive relevance that lies inside the boolean region; the region's share of the area
    where nothing is positive."""
    positive = np.maximum(resample(values, region.shape), 0).astype(np.float64)
    total = positive.sum()
    return float(positive[region].sum() / total) if total > 0 else float(region.mean())


def quarter(index: int, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: cell 0..3 of a 2x2 grid, row by row."""
    row, column = divmod(index, 2)
    return boxes([(column / 2, row / 2, column / 2 + 0.5, row / 2 + 0.5)], size)


def summary(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    array = np.array(values, float)
    return float(array.mean()), float(array.std(ddof=1) / np.sqrt(len(array))) if len(array) > 1 else float(
        "nan"
    )


def bootstrap(
    differences: np.ndarray, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float, float]:
    """Paired bootstrap over pictures → mean difference, its 95 % interval, and the two-sided p that it is not
    zero."""
    rng = np.random.default_rng(seed)
    n = len(differences)
    means = np.concatenate(
        [differences[rng.integers(0, n, (500, n))].mean(1) for _ in range(-(-resamples // 500))]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    tail = min(float((means <= 0).mean()), float((means >= 0).mean()))
    return float(differences.mean()), float(low), float(high), min(1.0, max(2 * tail, 1 / len(means)))
