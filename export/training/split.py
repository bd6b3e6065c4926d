"""Which pictures are held out for selection, temperature and calibration; for a user's own folder the choice
is written down and kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from .data import DataError, Pictures, read_folder


def tail(pictures: Pictures, share: float) -> tuple[Pictures, Pictures]:
    """(kept, held out): the last `share` of pictures that are shuffled already."""
    kept = len(pictures) - int(len(pictures) * share)
    return pictures.take(np.arange(kept)), pictures.take(np.arange(kept, len(pictures)))


def stratified(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Rows to hold out: about `share` of every class, at least one and never all; a class of a single picture
    stays in training."""
    rng = np.random.default_rng(seed)
    chosen: list[int] = []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        count = min(max(round(len(rows) * share), 1), len(rows) - 1)
        chosen += rows[:count].tolist()
    return np.array(sorted(chosen), np.int64)


def split_folder(folder: Path, size: int, record: Path, share: float, seed: int) -> tuple[Pictures, Pictures]:
    """(train, held out) of a user's folder: its own train/ and val/ where both are there, else a split
    written to `record` as JSON and reused from it.

    Pictures added to the folder since the split was written are trained on; pictures removed since are gone.
    """
    if (folder / "train").is_dir() and (folder / "val").is_dir():
        train, held_out = read_folder(folder / "train", size), read_folder(folder / "val", size)
        if train.classes != held_out.classes:
            raise DataError(
                f"{folder}: train/ and val/ have different classes "
                f"({', '.join(set(train.classes) ^ set(held_out.classes))})"
            )
        return train, held_out
    pictures = read_folder(folder, size)
    if record.is_file():
        chosen = set(json.loads(record.read_text())["held_out"])
        rows = np.array([i for i, name in enumerate(pictures.names) if name in chosen], np.int64)
    else:
        rows = stratified(pictures.labels, share, seed)
    if not len(rows):
        raise DataError(f"{folder} has too few pictures to hold any out; give every class at least two")
    rest = np.setdiff1d(np.arange(len(pictures)), rows)
    train, held_out = pictures.take(rest), pictures.take(rows)
    record.parent.mkdir(parents=True, exist_ok=True)
    text = {
        "folder": str(folder),
        "seed": seed,
        "train": train.names,
        "held_out": held_out.names,
        "skipped": pictures.skipped,
    }
    record.write_text(json.dumps(text, indent=1, ensure_ascii=False))
    return Pictures(train.images, train.labels, train.classes, train.names, pictures.skipped), held_out
