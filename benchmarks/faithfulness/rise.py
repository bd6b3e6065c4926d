"""RISE (Petsiuk et al. 2018) through the served model: the reference that costs a thousand forward passes a
picture. Its maps are kept in a file, since they are most of a run's time: 1000 x 100 passes are 10^5,
whatever else is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from service.geometry import resample

from .data import Picture, average
from .metrics import sums
from .served import BATCH, Served

CELLS = 8  # random cells along a side
KEEP = 0.5  # probability that a cell is kept


def masks(count: int, side: int, seed: int = 0) -> np.ndarray:
    """(count, side, side) float32 in 0..1: random cells, enlarged (linear) and shifted by up to a cell."""
    rng = np.random.default_rng(seed)
    cell = side // CELLS
    made = np.empty((count, side, side), np.float32)
    for i in range(count):
        large = resample((rng.random((CELLS, CELLS)) < KEEP).astype(np.float32), (side + cell, side + cell))
        y, x = rng.integers(0, cell, 2)
        made[i] = large[y : y + side, x : x + side]
    return made


def rise(served: Served, picture: np.ndarray, target: int, through: np.ndarray, cells: int) -> np.ndarray:
    """(cells, cells): the mean probability of `target` where a place is kept. Hidden places take the mean
    colour."""
    nothing = average(picture, served.manifest.preprocessing).astype(np.float32)
    difference = picture - nothing
    total = np.zeros(through.shape[1:], np.float64)
    for i in range(0, len(through), BATCH):
        part = through[i : i + BATCH]
        seen = np.rint(nothing + part[..., None] * difference).astype(np.uint8)
        total += np.einsum("b,bhw->hw", served.probabilities(seen, target).astype(np.float32), part)
    return sums(total / (len(through) * KEEP), cells)


def kept(
    served: Served, pictures: Sequence[Picture], count: int, folder: Path, say: Callable[[str], None]
) -> dict[str, np.ndarray]:
    """Name → map for each picture, from the file of this model where it is there; what is missing is made and
    written."""
    path = folder / f"rise-{count}-{served.engine.sha256[:12]}.npz"
    found: dict[str, np.ndarray] = dict(np.load(path)) if path.is_file() else {}
    missing = [p for p in pictures if p.name not in found]
    through = masks(count, served.manifest.preprocessing.size[0]) if missing else np.empty(0)
    cells = served.manifest.stages[0].grid[0]
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(missing), 10):
        part = missing[start : start + 10]
        made = served.pool.map(lambda p: rise(served, p.pixels, p.label, through, cells), part)
        found |= dict(zip((p.name for p in part), made, strict=True))
        np.savez(path, **found)
        say(f"RISE: {start + len(part)} of {len(missing)} photos")
    return {p.name: found[p.name] for p in pictures}
