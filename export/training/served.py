"""Pictures for evaluation, with labels that index the model's own classes: what is scored is what is served.
Reading is the work of `export.pictures`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from service.artifact import Preprocessing

from ..parts import find_parts
from ..pictures import Source, class_files, match_classes, open_pack, prepare_all
from .boxes import FILE as BOXES
from .data import IMAGENETTE, DataError, Pictures


def read(path: Path, labels: tuple[str, ...], preprocessing: Preprocessing) -> Pictures:
    """A .npz pack, or a folder with one sub-folder a class, as the network's input (n, H, W, 3) uint8 with
    labels that index `labels`.

    A folder that holds packs answers with the one test or validation pack whose classes are the model's, one
    with parts with its `scored_part`. Class folders are matched by name; WordNet ids of Imagenette count as
    names. Files that the server would refuse are skipped and listed. DataError where classes do not fit or
    nothing is readable.
    """
    if path.is_dir() and (packs := sorted(path.glob("*.npz"))):
        path = _test_pack(path, packs, labels)
    sources: Sequence[Source]
    left_out: tuple[str, ...] = ()
    if path.is_file():
        sources, numbers, classes = open_pack(path)
        names = tuple(f"row {i}" for i in range(len(sources)))
    else:
        files = class_files(scored_part(path), partial=True)
        sources, numbers, names = files.paths, files.labels, files.names
        left_out = tuple(line for line in files.left_out if not line.startswith(f"{BOXES}:"))
        classes = tuple(IMAGENETTE.get(name, name) for name in files.classes)
    own = match_classes(classes, labels, path)
    images, reasons = prepare_all(sources, preprocessing)
    good = np.array([i for i, reason in enumerate(reasons) if not reason], np.int64)
    if not len(good):
        raise DataError(f"{path} has no readable picture")
    skipped = (*left_out, *(f"{names[i]}: {reason}" for i, reason in enumerate(reasons) if reason))
    return Pictures(images[good], own[numbers[good]], labels, tuple(names[i] for i in good), skipped)


def scored_part(path: Path) -> Path:
    """The folder whose pictures are scored: the test part of a data set that has one, else its validation
    part; else the folder itself."""
    parts = find_parts(path) if path.is_dir() else None
    return (parts and (parts.test or parts.val or parts.train)) or path


def _test_pack(folder: Path, packs: list[Path], labels: tuple[str, ...]) -> Path:
    fitting = []
    for pack in packs:
        if "_train" not in pack.stem:
            with np.load(pack) as content:
                if "classes" in content and {str(c) for c in content["classes"]} == set(labels):
                    fitting.append(pack)
    if len(fitting) != 1:
        found = (
            f"{len(fitting)} of its packs fit ({', '.join(p.name for p in fitting)})"
            if fitting
            else "none of its packs has the model's classes"
        )
        raise DataError(f"{folder}: {found}; name one .npz, or a folder with one sub-folder a class")
    return fitting[0]
