"""Pictures and labels in memory: from a packed .npz, or from a folder with one sub-folder a class.

Everything is decoded once and kept as uint8, since two cores cannot decode as fast as they train. Splitting and augmentation are elsewhere.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

# Imagenette's classes in label order: WordNet ids (the folder names of imagenette2) and names.
IMAGENETTE = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
Progress = Callable[[str], None]


class DataError(Exception):
    """The data folder cannot be used; the message says why and what is expected."""


@dataclass(frozen=True)
class Pictures:
    """images: (n, S, S, 3) uint8; labels: (n,) int64, indices into classes; skipped: files that could not be read."""

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> Pictures:
        return Pictures(self.images[rows], self.labels[rows], self.classes)


def read_pack(path: Path, size: int) -> Pictures:
    """A .npz with `jpeg` (all files back to back), `offset` (n + 1), `label` (n) and `classes`; pictures stretched to `size` where they differ."""
    with np.load(path) as pack:
        data, offset = pack["jpeg"].tobytes(), pack["offset"]
        labels, classes = pack["label"].astype(np.int64), tuple(str(c) for c in pack["classes"])
    images = np.empty((len(labels), size, size, 3), np.uint8)
    for i in range(len(labels)):
        images[i] = _square(io.BytesIO(data[offset[i] : offset[i + 1]]), size)
    return Pictures(images, labels, classes)


def read_folder(folder: Path, size: int, names: dict[str, str] | None = None) -> Pictures:
    """One sub-folder a class, in alphabetical order; `names` maps folder names to class names. Unreadable files are skipped and listed."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    folders = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(folders) < 2:
        raise DataError(f"{folder} has {len(folders)} sub-folders; expected one sub-folder a class, at least two")
    images, labels, skipped = [], [], []
    for label, sub in enumerate(folders):
        files = sorted(p for p in sub.rglob("*") if p.suffix.lower() in SUFFIXES)
        read = 0
        for file in files:
            try:
                images.append(_square(file, size))
            except Exception as error:  # whatever a decoder raises on a broken file: skipped and reported, the training goes on
                skipped.append(f"{file}: {error}")
                continue
            labels.append(label)
            read += 1
        if not read:
            raise DataError(f"class folder {sub} has no readable picture ({', '.join(sorted(SUFFIXES))})")
    classes = tuple((names or {}).get(p.name, p.name) for p in folders)
    return Pictures(np.stack(images), np.array(labels), classes, tuple(skipped))


def _square(source: Path | io.BytesIO, size: int) -> np.ndarray:
    with Image.open(source) as image:
        image.draft("RGB", (size, size))
        rgb = image.convert("RGB")
    if rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return np.asarray(rgb)


def read_imagenette(folder: Path, size: int) -> tuple[Pictures, Pictures]:
    """(train, validation) from the packs `imagenette_train_128.npz` and `imagenette_val_128.npz`, or from an `imagenette2*` folder (train/, val/)."""
    packs = folder / "imagenette_train_128.npz", folder / "imagenette_val_128.npz"
    if all(p.is_file() for p in packs):
        return read_pack(packs[0], size), read_pack(packs[1], size)
    for root in (folder, *sorted(folder.glob("imagenette2*"))):
        if (root / "train").is_dir() and (root / "val").is_dir():
            return read_folder(root / "train", size, IMAGENETTE), read_folder(root / "val", size, IMAGENETTE)
    raise DataError(f"{folder} holds neither imagenette_train_128.npz and imagenette_val_128.npz nor an imagenette2 folder with train/ and val/")
