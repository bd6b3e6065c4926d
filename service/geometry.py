"""Where a map's numbers lie: re-sampling between grids, pixels and crops, and the shape of regions. Numpy
only; knows neither classes nor colours.

One convention everywhere: cell i of n cells covers [i/n, (i+1)/n] and its number stands at the middle
(half-pixel centres). Places inside a map are fractions of its width and height, so they do not change with
its resolution; `to_pixels` turns them into pixels of the picture it was made from.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

UNTHREADED = 200_000  # multiplications that OpenBLAS still does in the calling thread (its limit is 262,144)

Fractions = tuple[float, float, float, float]  # x0, y0, x1, y1 of a region inside a map, each 0..1
Window = tuple[
    float, float, float, float
]  # x0, y0, x1, y1 in pixels: where on a picture a map lies; may reach beyond it


@lru_cache(maxsize=32)
def taps(
    cells: int, length: int, start: float = 0.0, stop: float | None = None, *, cubic: bool = False
) -> np.ndarray:
    """(length, cells) float32: row i mixes the cells into the value at the middle of output pixel i.

    The cells cover start..stop of the output axis (default: all of it); a pixel outside gets a row of zeros,
    any other row sums to 1. Beyond the outermost centres the map goes on flat. Linear, or cubic (Catmull-Rom:
    smoother, passes through the same values, may overshoot). Kept, so not to be written to.
    """
    stop = length if stop is None else stop
    middle = np.arange(length) + 0.5
    at = (middle - start) / (stop - start) * cells - 0.5
    low = np.floor(at).astype(np.intp)
    t = at - low
    if cubic:
        weights = (
            ((-0.5 * t + 1) * t - 0.5) * t,
            (1.5 * t - 2.5) * t * t + 1,
            ((-1.5 * t + 2) * t + 0.5) * t,
            (0.5 * t - 0.5) * t * t,
        )
    else:
        weights = np.zeros_like(t), 1 - t, t, np.zeros_like(t)
    matrix = np.zeros((length, cells), np.float32)
    rows = np.flatnonzero((middle > start) & (middle < stop))
    for offset, weight in enumerate(weights, -1):
        matrix[rows, np.clip(low[rows] + offset, 0, cells - 1)] += weight[rows]
    matrix.setflags(write=False)
    return matrix


def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """left @ right for 2-D arrays, in slices so small that BLAS never wakes its threads: on cores that are
    busy with inference, waiting for them costs 20 times the arithmetic."""
    rows = max(1, UNTHREADED // right.size)
    whole = len(left) // rows * rows
    out = np.empty((len(left), right.shape[1]), np.result_type(left, right))
    np.matmul(
        left[:whole].reshape(-1, rows, left.shape[1]),
        right,
        out=out[:whole].reshape(-1, rows, right.shape[1]),
    )
    np.matmul(left[whole:], right, out=out[whole:])
    return out


def resample(values: np.ndarray, size: tuple[int, int], *, cubic: bool = False) -> np.ndarray:
    """(h, w) → (H, W) float32 over the same area."""
    if values.shape == size:
        return values.astype(np.float32)
    down, across = (taps(n, m, cubic=cubic) for n, m in zip(values.shape, size, strict=True))
    return product(product(down, values.astype(np.float32)), across.T)


def spread(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Hands every number of (h, w) out over a finer (H, W) in proportion to its linear weights there: the sum
    stays what it was. float64."""
    down, across = (taps(n, m).astype(np.float64) for n, m in zip(values.shape, size, strict=True))
    return product(product(down / down.sum(0), values), (across / across.sum(0)).T)


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Mean over width x width cells (odd), the border repeated; (h, w) → (h, w)."""
    for axis in (0, 1):
        padded = np.pad(values, [(width // 2,) * 2 if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        values = np.mean(np.lib.stride_tricks.sliding_window_view(padded, width, axis), -1)
    return values


def largest_component(region: np.ndarray) -> np.ndarray:
    """The biggest 4-connected part of a boolean (H, W), the first one where two are equal; all False if there
    is none.

    Works on horizontal runs (union-find), so its cost grows with the outline, not with the area.
    """
    edges = np.diff(np.pad(region, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    (rows, starts), stops = np.nonzero(edges == 1), np.nonzero(edges == -1)[1]
    runs = list(zip(rows.tolist(), starts.tolist(), stops.tolist(), strict=True))
    parent = list(range(len(runs)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    above = 0  # the first run of the row above that may still touch
    for i, (row, start, stop) in enumerate(runs):
        while above < i and (
            runs[above][0] < row - 1 or (runs[above][0] == row - 1 and runs[above][2] <= start)
        ):
            above += 1
        j = above
        while j < i and runs[j][0] == row - 1 and runs[j][1] < stop:
            a, b = root(i), root(j)
            parent[max(a, b)] = min(a, b)
            j += 1
    roots = np.array([root(i) for i in range(len(runs))], np.intp)
    largest = np.zeros_like(region)
    if len(runs):
        best = np.argmax(np.bincount(roots, weights=stops - starts))
        for i in np.flatnonzero(roots == best).tolist():
            row, start, stop = runs[i]
            largest[row, start:stop] = True
    return largest


def bounds(region: np.ndarray) -> Fractions | None:
    """The smallest box around the True cells of (H, W), as fractions; None if there are none."""
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    if not len(rows):
        return None
    height, width = region.shape
    return (
        float(columns[0] / width),
        float(rows[0] / height),
        float((columns[-1] + 1) / width),
        float((rows[-1] + 1) / height),
    )


def to_pixels(place: Fractions, window: Window, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box in fractions of a map that lies on `window` → the pixels (x0, y0, x1, y1) that it touches.

    size: (width, height) of the picture."""
    left, top, right, bottom = window
    xs = [left + f * (right - left) for f in (place[0], place[2])]
    ys = [top + f * (bottom - top) for f in (place[1], place[3])]
    width, height = size

    def low(value: float, limit: int) -> int:
        return min(max(math.floor(value + 1e-6), 0), limit)

    def high(value: float, limit: int) -> int:
        return min(max(math.ceil(value - 1e-6), 0), limit)

    return low(xs[0], width), low(ys[0], height), high(xs[1], width), high(ys[1], height)


def to_pixel(place: tuple[float, float], window: Window, size: tuple[int, int]) -> tuple[int, int]:
    """A point in fractions of a map that lies on `window` → the pixel (x, y) it falls into on a picture of
    `size` (width, height)."""
    x, y, _, _ = to_pixels((*place, *place), window, size)
    return min(x, size[0] - 1), min(y, size[1] - 1)
