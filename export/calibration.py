"""The pictures that int8 is calibrated and judged on: class folders, any other folder of pictures, or a pack,
prepared exactly as the server prepares them.

No picture is in both parts. Where the classes are the model's, the labels of those that judge come along, so
that the accuracy that is lost can be measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.artifact import Preprocessing
from service.folders import list_pictures
from service.images import accepted

from .parts import find_parts
from .pictures import (
    PACK_SHARE,
    Calibration,
    DataError,
    Source,
    class_files,
    fingerprints,
    match_classes,
    open_pack,
    prepare,
)

CALIBRATING = 256  # pictures; more change the ranges no further
HELD_OUT = 600  # pictures of a pack's last tenth, of which a few calibrate, are enough to judge
JUDGING = 1_000  # pictures; one more or less is a fifth of what may be lost


@dataclass(frozen=True)
class _Labelled:
    sources: Sequence[Source]
    labels: np.ndarray | None
    unlabelled: str = ""


def read_calibration(source: Path, how: Preprocessing, labels: tuple[str, ...]) -> Calibration:
    """Up to `CALIBRATING` pictures to calibrate on and up to `JUDGING` others, both evenly from all that
    there are, so from every class: files below a folder, or rows of a .npz pack. labels: the model's.

    Of a data set with parts the validation part is taken, and of a pack with enough pictures the last tenth
    judges: the network has not learned from these. What the server would refuse is passed over: it cannot be
    typical of what the server will see. ValueError where no picture is readable.
    """
    found = _open(source, labels)
    rows = np.arange(len(found.sources))
    first = _evenly(rows, min(len(rows) // 2, CALIBRATING) or len(rows))
    calibrating, _ = _read(found.sources, first, how)
    others = np.setdiff1d(rows, first)
    if source.is_file() and PACK_SHARE * len(rows) >= HELD_OUT:
        others = others[others >= len(rows) - int(PACK_SHARE * len(rows))]
    judging, kept = _read(found.sources, _evenly(others, JUDGING), how)
    if not len(calibrating):
        raise ValueError(
            f"{source} holds no readable pictures; give a folder with {accepted()} files or a .npz pack"
        )
    fresh = ~np.isin(fingerprints(judging), fingerprints(calibrating))
    own = None if found.labels is None else found.labels[kept[fresh]]
    return Calibration(calibrating, judging[fresh], own, found.unlabelled)


def _open(source: Path, labels: tuple[str, ...]) -> _Labelled:
    sources: Sequence[Source]
    if source.is_file():
        try:
            sources, numbers, classes = open_pack(source)
        except DataError as error:
            raise ValueError(str(error)) from None
    else:
        try:
            parts = find_parts(source)
            files = class_files((parts and (parts.val or parts.train or parts.test)) or source, partial=True)
        except DataError as error:
            return _Labelled(list_pictures(source).pictures if source.is_dir() else [], None, error.message)
        sources, numbers, classes = files.paths, files.labels, files.classes
    try:
        return _Labelled(sources, match_classes(classes, labels, source)[numbers])
    except DataError as error:
        return _Labelled(sources, None, error.message)


def _evenly(rows: np.ndarray, most: int) -> np.ndarray:
    """Up to `most` of the rows, at even distances."""
    return rows[np.linspace(0, len(rows), min(len(rows), most), endpoint=False).astype(int)]


def _read(sources: Sequence[Source], rows: np.ndarray, how: Preprocessing) -> tuple[np.ndarray, np.ndarray]:
    """(pictures, the rows that could be read)."""
    read = [(row, picture) for row in rows if isinstance(picture := prepare(sources[row], how), np.ndarray)]
    pictures = np.stack([picture for _, picture in read]) if read else np.zeros((0, *how.size, 3), np.uint8)
    return pictures, np.array([row for row, _ in read], np.int64)
