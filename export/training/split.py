"""Which pictures are trained on, which are held out for selection, temperature and calibration, and which
only score the result. For a user's own folder the choice is written down and kept.

What could make the figures of a training better than the model is said: copies of a picture on both sides,
and classes of which nothing is held out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from service.files import read_json
from service.folders import normal

from ..parts import Parts, find_parts
from ..pictures import How, fingerprints
from .data import DataError, Pictures, read_folder

SPLIT = "split.json"  # in the folder of a run
HELD_OUT = "held_out"  # there too: class folders of held-out pictures, for calibration and novelty
SHOWN = 3  # examples in a remark
UNEQUAL = 20  # times as many pictures as the rarest class has: said


@dataclass(frozen=True)
class Split:
    """tests: scored once, at the end. notes: what the user should know. record: what to write down, so that
    the next run holds out the same pictures; None where the folder itself says which."""

    train: Pictures
    held_out: Pictures
    tests: dict[str, Pictures] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    record: dict[str, Any] | None = None


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


def split_folder(folder: Path, how: How, record: Path, share: float, seed: int) -> Split:
    """A user's folder: its own parts where it has them, else a split into training and held-out pictures,
    the one that `record` (JSON) holds if it fits. Nothing is written.

    Pictures added to the folder since the split was written are trained on; pictures removed since are gone.
    A test part is never trained on and nothing is chosen by it.
    """
    parts = find_parts(folder)
    if parts is None:
        return _divide(read_folder(folder, how), folder, record, share, seed)
    if parts.train is None:
        raise DataError(f"{folder} has no training part; name the folder with most pictures train/")
    train = read_folder(parts.train, how)
    rest = {
        role: read_folder(path, how, classes=train.classes)
        for role, path in (("val", parts.val), ("test", parts.test))
        if path
    }
    tests = {"test": rest["test"]} if "test" in rest else {}
    whole = "val" in rest
    split = Split(train, rest["val"]) if whole else _divide(train, parts.train, record, share, seed)
    skipped = (*train.skipped, *(line for other in rest.values() for line in other.skipped))
    notes = (*_uses(parts), *parts.notes, *_missing(rest), *split.notes, *_copies_between(split, tests))
    if whole:
        notes += tuple(_unequal(train))
    return Split(_with_skipped(split.train, skipped), split.held_out, tests, notes, split.record)


def _divide(pictures: Pictures, folder: Path, record: Path, share: float, seed: int) -> Split:
    """The recorded split, or a new one. Copies of a picture stay on one side."""
    groups = np.unique(fingerprints(pictures.images), return_inverse=True)[1]
    first = np.unique(groups, return_index=True)[1]  # one row for each group of copies
    rows = _recorded(pictures, record)
    if not len(rows):
        first.sort()
        rows = first[stratified(pictures.labels[first], share, seed)]
    if not len(rows):
        raise DataError(f"{folder} has too few pictures to hold any out; give every class at least two")
    held = np.isin(groups, groups[rows])
    train, held_out = pictures.take(np.flatnonzero(~held)), pictures.take(np.flatnonzero(held))
    if empty := _absent(train):
        raise DataError(
            f"{folder}: every picture of the class {empty[0]} is held out, or a copy of one that is; give it "
            "more pictures, or start a new run"
        )
    notes = [*_copies_inside(pictures, groups), *_unjudged(held_out), *_unequal(train)]
    text = {
        "folder": str(folder),
        "seed": seed,
        "train": train.names,
        "held_out": held_out.names,
        "skipped": pictures.skipped,
    }
    return Split(_with_skipped(train, pictures.skipped), held_out, notes=tuple(notes), record=text)


def _recorded(pictures: Pictures, record: Path) -> np.ndarray:
    """The rows that an earlier run held out; none where there is no record, or only a damaged one."""
    written = read_json(record)
    names = written.get("held_out") if isinstance(written, dict) else None
    chosen = {normal(str(name)) for name in names} if isinstance(names, list) else set()
    return np.array([i for i, name in enumerate(pictures.names) if name in chosen], np.int64)


def _with_skipped(pictures: Pictures, skipped: tuple[str, ...]) -> Pictures:
    return Pictures(pictures.images, pictures.labels, pictures.classes, pictures.names, skipped)


def _absent(pictures: Pictures) -> list[str]:
    """The classes without a picture."""
    counts = np.bincount(pictures.labels, minlength=len(pictures.classes))
    return [name for name, count in zip(pictures.classes, counts, strict=True) if not count]


def _uses(parts: Parts) -> list[str]:
    uses = ((parts.train, "trained on"), (parts.val, "held out"), (parts.test, "scored once, at the end"))
    return ["parts: " + ", ".join(f"{path.name}/ is {use}" for path, use in uses if path)]


def _missing(rest: dict[str, Pictures]) -> list[str]:
    return [
        f"the {role} part has no picture of {_some(empty)}: no figure of it says whether the model knows them"
        for role, pictures in rest.items()
        if (empty := _absent(pictures))
    ]


def _unjudged(held_out: Pictures) -> list[str]:
    if not (empty := _absent(held_out)):
        return []
    return [f"nothing is held out of {_some(empty)}: no figure says whether the model knows them"]


def _unequal(train: Pictures) -> list[str]:
    counts = np.bincount(train.labels, minlength=len(train.classes))
    rare, common = int(counts.argmin()), int(counts.argmax())
    if counts[common] < UNEQUAL * counts[rare]:
        return []
    return [
        f"the classes are very unequal: {counts[rare]} of {train.classes[rare]!r} against {counts[common]} "
        f"of {train.classes[common]!r}; rare ones weigh more in training, yet judge by the scores by class"
    ]


def _copies_inside(pictures: Pictures, groups: np.ndarray) -> list[str]:
    """Copies in one folder, and those that stand in two classes."""
    order = np.argsort(groups, kind="stable")
    again = np.flatnonzero(groups[order][1:] == groups[order][:-1])
    pairs = sorted((int(order[i]), int(order[i + 1])) for i in again)
    if not pairs:
        return []
    named = [f"{pictures.names[a]} = {pictures.names[b]}" for a, b in pairs]
    notes = [
        f"{len(pairs)} pictures are copies of others ({_few(named)}); copies stay on one side of the split"
    ]
    torn = [n for n, (a, b) in zip(named, pairs, strict=True) if pictures.labels[a] != pictures.labels[b]]
    if torn:
        notes.append(f"{len(torn)} pictures stand in two classes ({_few(torn)}): one of them must be wrong")
    return notes


def _copies_between(split: Split, tests: dict[str, Pictures]) -> list[str]:
    """Pictures that are trained on and judged by."""
    known = dict(zip(fingerprints(split.train.images).tolist(), split.train.names, strict=True))
    notes = []
    for what, pictures in {"held-out": split.held_out, **tests}.items():
        marks = fingerprints(pictures.images).tolist()
        pairs = [
            f"{name} = {known[mark]}"
            for mark, name in zip(marks, pictures.names, strict=True)
            if mark in known
        ]
        if pairs:
            notes.append(
                f"{len(pairs)} of the {len(pictures)} {what} pictures are trained on too ({_few(pairs)}): "
                "their figures are too good"
            )
    return notes


def _few(items: list[str]) -> str:
    return ", ".join(items[:SHOWN]) + (", …" if len(items) > SHOWN else "")


def _some(classes: list[str]) -> str:
    what = "the class" if len(classes) == 1 else f"{len(classes)} classes,"
    return f"{what} {_few(classes)}"
