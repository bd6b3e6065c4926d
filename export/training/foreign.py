"""Photos of none of the classes, for training (outlier exposure, Hendrycks et al. 2019) and for judging it.

Which kinds and sources of the varied pack no fit may see is decided here, once, from fixed seeds: a method
tuned to its own negatives is worth nothing. Pictures that are no photos are `drawings`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .data import DataError, Pictures, read_pack

PACK = "varied_train_128.npz"
SEED = 16
UNSEEN_SHARE = 1 / 5  # of the kinds: never fitted to, reported on
CHOICE_SHARE = 1 / 20  # of the kinds: never trained on, for choosing between models
UNSEEN_SOURCES = 2  # of those with at most SMALL photos, so that training keeps its breadth
SMALL, SMALLEST = 1000, 200
TRAIN, CHOICE, UNSEEN = "train", "choice", "unseen"


@dataclass(frozen=True)
class Foreign:
    """The varied pack in three: train, to learn from; choice, for selection; unseen, for final figures."""

    train: Pictures
    choice: Pictures
    unseen: Pictures


def parts(labels: np.ndarray, sources: np.ndarray, kinds: int) -> np.ndarray:
    """For each photo of the varied pack, which part it is in: TRAIN, CHOICE or UNSEEN."""
    rng = np.random.default_rng(SEED)
    order = rng.permutation(kinds)
    unseen, choice = round(kinds * UNSEEN_SHARE), round(kinds * CHOICE_SHARE)
    part = np.full(len(labels), TRAIN, dtype="U6")
    part[np.isin(labels, order[unseen : unseen + choice])] = CHOICE
    part[np.isin(labels, order[:unseen])] = UNSEEN
    names, counts = np.unique(sources, return_counts=True)
    small = names[(counts >= SMALLEST) & (counts <= SMALL)]
    part[np.isin(sources, rng.choice(small, min(UNSEEN_SOURCES, len(small)), replace=False))] = UNSEEN
    return part


def read_foreign(folder: Path, size: int) -> Foreign:
    """The varied pack of `folder`, stretched to `size`; DataError where it is absent or is another pack."""
    path = folder / PACK
    pictures = read_pack(path, size)
    try:
        with np.load(path) as pack:
            sources = pack["source"].astype(str)
    except KeyError:
        raise DataError(f"{path} does not say the source of its photos") from None
    part = parts(pictures.labels, sources, len(pictures.classes))
    train, choice, unseen = (pictures.take(np.flatnonzero(part == name)) for name in (TRAIN, CHOICE, UNSEEN))
    return Foreign(train, choice, unseen)
