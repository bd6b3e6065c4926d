"""What makes one map better than another, as plain numpy functions of maps, probabilities and regions. No
model and no pictures in here.

Maps are compared on one grid of `cells` (H, W); the higher the number, the more a place is said to speak for
the class.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from service.geometry import resample


def ranking(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flat indices of the cells, most relevant first; equal cells in random order, so that a flat map ranks
    like chance."""
    return np.lexsort((rng.random(values.size), -values.ravel()))


def parts(steps: int) -> np.ndarray:
    """(steps + 1,) from 0 to 1, closer together at the beginning, where rankings differ: squares of equal
    distances."""
    return np.linspace(0, 1, steps + 1) ** 2


def revealed(values: np.ndarray, steps: int, rng: np.random.Generator) -> np.ndarray:
    """(steps + 1, H, W) bool: nothing, then ever more of the most relevant cells, as `parts` says, then
    everything."""
    order = ranking(values, rng)
    counts = (values.size * parts(steps)).round().astype(int)
    place = np.empty(values.size, int)
    place[order] = np.arange(values.size)
    return place.reshape(values.shape) < counts[:, None, None]


def area(curve: np.ndarray) -> float:
    """Area under a curve given at `parts` of 0..1 (trapezoids)."""
    return float(np.trapezoid(np.asarray(curve, float), parts(len(curve) - 1)))


def spearman(left: np.ndarray, right: np.ndarray) -> float:
    """Rank correlation, ties at their mean rank; 0 where one side is constant (it says nothing)."""
    a, b = (rankdata(np.ravel(side)) for side in (left, right))
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale else 0.0


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


def points(values: np.ndarray, region: np.ndarray) -> float:
    """1 where the map's highest place lies inside the region, else 0; the mean over several equally high
    places."""
    fine = resample(values, region.shape)
    return float(region[fine >= fine.max()].mean())


def boxes(fractions: list[tuple[float, float, float, float]], size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: the pixels whose middle lies in any box, given as fractions of width and height x0, y0,
    x1, y1."""
    y, x = ((np.arange(n) + 0.5) / n for n in size)
    region = np.zeros(size, bool)
    for x0, y0, x1, y1 in fractions:
        region |= ((y >= y0) & (y <= y1))[:, None] & ((x >= x0) & (x <= x1))[None]
    return region


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
