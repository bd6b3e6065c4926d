"""What makes one map better than another, as plain numpy functions of maps, probabilities and regions. No
model and no pictures in here.

The higher a number of a map (H, W), the more its place is said to speak for the class.
"""

from __future__ import annotations

import numpy as np

from service.geometry import resample

Fractions = tuple[float, float, float, float]  # x0, y0, x1, y1 of width and height


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


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties at their mean rank, float64."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse].astype(np.float64)


def spearman(left: np.ndarray, right: np.ndarray) -> float:
    """Rank correlation, ties at their mean rank; 0 where one side is constant (it says nothing)."""
    a, b = (ranks(np.ravel(side)) for side in (left, right))
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale else 0.0


def points(values: np.ndarray, region: np.ndarray) -> float:
    """1 where the map's highest place lies inside the region, else 0; the mean over several equally high
    places."""
    fine = resample(values, region.shape)
    return float(region[fine >= fine.max()].mean())


def boxes(fractions: list[Fractions], size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: the pixels whose middle lies in any box."""
    y, x = ((np.arange(n) + 0.5) / n for n in size)
    region = np.zeros(size, bool)
    for x0, y0, x1, y1 in fractions:
        region |= ((y >= y0) & (y <= y1))[:, None] & ((x >= x0) & (x <= x1))[None]
    return region
