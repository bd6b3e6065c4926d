"""Pictures and labels in memory: from a packed .npz, or from a folder with one sub-folder a class.

Everything is decoded once, by the server's own reader (`export.pictures`), and kept as uint8, since two cores
cannot decode as fast as they train. `split` chooses which pictures are held out, `augment` changes them for
training.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..pictures import DataError, How, class_files, open_pack, prepare_all, require_every_class

__all__ = [
    "IMAGENETTE",
    "DataError",
    "Pictures",
    "read_cifar10",
    "read_folder",
    "read_imagenette",
    "read_pack",
]

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


@dataclass(frozen=True)
class Pictures:
    """images: (n, S, S, 3) uint8; labels: (n,) int64, indices into classes; names: file names relative to the
    folder read, empty for packs; skipped: files that could not be read, with the reason."""

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    names: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> Pictures:
        """The pictures of these rows, in this order."""
        return Pictures(
            self.images[rows],
            self.labels[rows],
            self.classes,
            tuple(self.names[i] for i in rows) if self.names else (),
        )


def read_pack(path: Path, how: How) -> Pictures:
    """A pack's pictures."""
    sources, labels, classes = open_pack(path)
    images, reasons = prepare_all(sources, how)
    if bad := [f"row {i}: {reason}" for i, reason in enumerate(reasons) if reason]:
        raise DataError(f"{path} has {len(bad)} pictures that cannot be read, such as {bad[0]}")
    return Pictures(images, labels, classes)


def read_folder(
    folder: Path, how: How, names: dict[str, str] | None = None, classes: tuple[str, ...] | None = None
) -> Pictures:
    """One sub-folder a class, in alphabetical order; `names` maps folder names to class names. Files that the
    server would refuse are skipped and listed. classes: those of the training part, for another part of the
    same data, which need not have them all; DataError where it has others."""
    files = class_files(folder, partial=classes is not None)
    own = tuple((names or {}).get(name, name) for name in files.classes)
    if strange := sorted(set(own) - set(classes or own)):
        raise DataError(
            f"{folder} has the class {strange[0]!r}, which the training part has not: they have different "
            "classes"
        )
    numbers = np.array([(classes or own).index(name) for name in own], np.int64)
    images, reasons = prepare_all(files.paths, how)
    good = np.array([i for i, reason in enumerate(reasons) if not reason], np.int64)
    labels = numbers[files.labels[good]]
    require_every_class(folder, classes or own, labels.tolist(), partial=classes is not None)
    return Pictures(
        images if len(good) == len(images) else images[good],
        labels,
        classes or own,
        tuple(files.names[i] for i in good),
        (*files.left_out, *(f"{files.names[i]}: {r}" for i, r in enumerate(reasons) if r)),
    )


def read_imagenette(folder: Path, how: How) -> tuple[Pictures, Pictures]:
    """(train, validation), both shuffled, from the packs `imagenette_train_128.npz` and
    `imagenette_val_128.npz`, or from an `imagenette2*` folder."""
    packs = folder / "imagenette_train_128.npz", folder / "imagenette_val_128.npz"
    if all(p.is_file() for p in packs):
        return read_pack(packs[0], how), read_pack(packs[1], how)
    for root in (folder, *sorted(folder.glob("imagenette2*"))):
        if (root / "train").is_dir() and (root / "val").is_dir():
            train = read_folder(root / "train", how, IMAGENETTE)
            return _shuffled(train), _shuffled(read_folder(root / "val", how, IMAGENETTE, train.classes))
    raise DataError(
        f"{folder} holds neither imagenette_train_128.npz and imagenette_val_128.npz nor an imagenette2 "
        "folder with train/ and val/"
    )


def read_cifar10(folder: Path, how: How = 32) -> tuple[Pictures, dict[str, Pictures]]:
    """(train, tests by name) from `cifar10_train_jpeg.npz`, `cifar10_test_jpeg.npz` and, where present,
    `cifar10_lossless_test1k.npz`."""
    train, test, lossless = (
        folder / f"cifar10_{part}.npz" for part in ("train_jpeg", "test_jpeg", "lossless_test1k")
    )
    if not (train.is_file() and test.is_file()):
        raise DataError(f"{folder} holds no {train.name} and {test.name}")
    tests = {"jpeg": read_pack(test, how)}
    if lossless.is_file():
        tests["lossless"] = read_pack(lossless, how)
    return read_pack(train, how), tests


def _shuffled(pictures: Pictures) -> Pictures:
    return pictures.take(np.random.default_rng(0).permutation(len(pictures)))
