"""Photos of none of the classes, for training (outlier exposure, Hendrycks et al. 2019) and for judging it.

Which kinds and sources no fit may see is decided here, once, from fixed seeds: a method tuned to its own
negatives is worth nothing. Pictures that are no photos are the subject of `drawings`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.folders import list_pictures

from ..pictures import How, Source, open_pack, prepare_all
from .data import DataError, Pictures

PACK = "varied_train_128.npz"
SEED = 16
UNSEEN_SHARE = 1 / 5  # of the kinds: never fitted to, reported on
CHOICE_SHARE = 1 / 20  # of the kinds: never trained on, for choosing between models
UNSEEN_SOURCES = 2  # of those with at most SMALL photos, so that training keeps its breadth
SMALL, SMALLEST = 1000, 200
FEWEST_KINDS = 10  # of fewer, every picture is a kind of its own
TRAIN, CHOICE, UNSEEN = "train", "choice", "unseen"


@dataclass(frozen=True)
class Foreign:
    """Foreign photos in three: train, to learn from; choice, for selection; unseen, for final figures."""

    train: Pictures
    choice: Pictures
    unseen: Pictures


def parts(labels: np.ndarray, sources: np.ndarray, kinds: int) -> np.ndarray:
    """For each photo, which part it is in: TRAIN, CHOICE or UNSEEN. labels, sources: (n,); of one source,
    none is kept back."""
    rng = np.random.default_rng(SEED)
    order = rng.permutation(kinds)
    unseen, choice = round(kinds * UNSEEN_SHARE), round(kinds * CHOICE_SHARE)
    part = np.full(len(labels), TRAIN, dtype="U6")
    part[np.isin(labels, order[unseen : unseen + choice])] = CHOICE
    part[np.isin(labels, order[:unseen])] = UNSEEN
    names, counts = np.unique(sources, return_counts=True)
    small = names[(counts >= SMALLEST) & (counts <= SMALL)]
    whole = min(UNSEEN_SOURCES, len(small)) if len(names) > UNSEEN_SOURCES else 0
    part[np.isin(sources, rng.choice(small, whole, replace=False))] = UNSEEN
    return part


def read_foreign(path: Path, how: How, most: int | None = None) -> Foreign:
    """The photos of a pack, or of a folder with one sub-folder a kind, as the network's input. most: of each
    part, evenly spaced. DataError where nothing is readable.

    Files of a folder that the server would refuse are passed over.
    """
    sources, labels, kinds, origins = _open(path)
    part = parts(labels, origins, len(kinds))
    train, choice, unseen = (
        _read([sources[i] for i in rows], labels[rows], kinds, how)
        for rows in (_some(np.flatnonzero(part == name), most) for name in (TRAIN, CHOICE, UNSEEN))
    )
    if not len(train):
        raise DataError(f"{path} holds no readable picture")
    return Foreign(train, choice, unseen)


def _open(path: Path) -> tuple[list[Source], np.ndarray, tuple[str, ...], np.ndarray]:
    """(pictures, their kinds (n,), names of the kinds, their sources (n,))."""
    if path.is_file():
        sources, labels, kinds = open_pack(path)
        with np.load(path) as pack:
            origins = pack["source"].astype(str) if "source" in pack else np.full(len(labels), "")
        return sources, labels, kinds, origins
    files = list_pictures(path).pictures if path.is_dir() else ()
    if not files:
        raise DataError(f"{path} holds no readable picture")
    names = [file.relative_to(path).parts[0] for file in files]
    if len(set(names)) < FEWEST_KINDS:
        names = [str(file.relative_to(path)) for file in files]
    found, numbers = np.unique(names, return_inverse=True)
    return list(files), numbers.astype(np.int64), tuple(map(str, found)), np.full(len(files), "")


def _some(rows: np.ndarray, most: int | None) -> np.ndarray:
    if most is None or len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows), most, endpoint=False).astype(int)]


def _read(sources: list[Source], labels: np.ndarray, kinds: tuple[str, ...], how: How) -> Pictures:
    images, reasons = prepare_all(sources, how)
    good = np.array([reason is None for reason in reasons], bool)
    return Pictures(images[good], labels[good], kinds)
