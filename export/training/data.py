"""Pictures and labels in memory: from a packed .npz, or from a folder with one sub-folder a class.

Everything is decoded once and kept as uint8, since two cores cannot decode as fast as they train. Which
pictures are held out is `split`'s, what is done to them for training is `augment`'s.
"""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from service.errors import PacaError
from service.options import SUFFIXES

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
Source = bytes | np.ndarray  # an encoded file, or pixels (H, W, 3) uint8


class DataError(PacaError):
    """The data cannot be used; the message says in one line why and what is expected."""


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


def open_pack(path: Path) -> tuple[list[Source], np.ndarray, tuple[str, ...]]:
    """(pictures as stored, labels, classes) of a .npz with `label` (n), `classes`, and either `jpeg` (all
    files back to back) with `offset` (n + 1), or `image` (n, H, W, 3) uint8."""
    try:
        with np.load(path) as pack:
            labels, classes = pack["label"].astype(np.int64), tuple(str(c) for c in pack["classes"])
            if "image" in pack:
                return list(pack["image"]), labels, classes
            data, offset = pack["jpeg"].tobytes(), pack["offset"]
    except (OSError, KeyError, ValueError) as error:
        raise DataError(
            f"{path} is not a pack of pictures (.npz with jpeg and offset, or image; and label, classes): "
            f"{error}"
        ) from None
    return [data[offset[i] : offset[i + 1]] for i in range(len(labels))], labels, classes


def read_pack(path: Path, size: int) -> Pictures:
    """A pack's pictures, stretched to `size` where they differ."""
    sources, labels, classes = open_pack(path)
    images = np.empty((len(labels), size, size, 3), np.uint8)
    for i, source in enumerate(sources):
        images[i] = square(source, size)
    return Pictures(images, labels, classes)


def list_folder(folder: Path) -> list[Path]:
    """The class folders, in alphabetical order, of a folder with one sub-folder a class; DataError where
    there are not two of them."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    folders = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise DataError(f"{folder} has no sub-folders; expected one sub-folder a class, at least two")
    if len(folders) == 1:
        raise DataError(
            f"{folder} has only one class, {folders[0].name}; a classifier needs at least two sub-folders"
        )
    return folders


def picture_files(folder: Path) -> list[Path]:
    """The picture files in a folder and below, sorted."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)


def read_folder(folder: Path, size: int, names: dict[str, str] | None = None) -> Pictures:
    """One sub-folder a class, in alphabetical order; `names` maps folder names to class names. Unreadable
    files are skipped and listed."""
    folders = list_folder(folder)
    files = [(label, p) for label, sub in enumerate(folders) for p in picture_files(sub)]
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda item: _try(item[1], size), files))
    read = [(label, p, r) for (label, p), r in zip(files, results, strict=True) if isinstance(r, np.ndarray)]
    skipped = tuple(
        f"{p.relative_to(folder)}: {r}"
        for (_, p), r in zip(files, results, strict=True)
        if isinstance(r, str)
    )
    found = {label for label, _, _ in read}
    if empty := [sub.name for label, sub in enumerate(folders) if label not in found]:
        raise DataError(
            f"no readable picture ({', '.join(sorted(SUFFIXES))}) in the class folder {', '.join(empty)} of "
            f"{folder}"
        )
    classes = tuple((names or {}).get(p.name, p.name) for p in folders)
    labels = np.array([label for label, _, _ in read], np.int64)
    return Pictures(
        np.stack([r for _, _, r in read]),
        labels,
        classes,
        tuple(p.relative_to(folder).as_posix() for _, p, _ in read),
        skipped,
    )


def _try(file: Path, size: int) -> np.ndarray | str:
    """The picture, or why it cannot be read: whatever a decoder raises on a broken file, the training goes
    on."""
    try:
        return square(file, size)
    except Exception as error:
        return str(error) or type(error).__name__


def square(source: Source | Path, size: int) -> np.ndarray:
    """The whole picture, upright, stretched to (size, size, 3) uint8: the preprocessing our own networks are
    served with."""
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    with Image.fromarray(file) if isinstance(file, np.ndarray) else Image.open(file) as image:
        image.draft("RGB", (size, size))
        rgb = ImageOps.exif_transpose(image).convert("RGB")
    if rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return np.asarray(rgb)


def read_imagenette(folder: Path, size: int) -> tuple[Pictures, Pictures]:
    """(train, validation), both shuffled, from the packs `imagenette_train_128.npz` and
    `imagenette_val_128.npz`, or from an `imagenette2*` folder."""
    packs = folder / "imagenette_train_128.npz", folder / "imagenette_val_128.npz"
    if all(p.is_file() for p in packs):
        return read_pack(packs[0], size), read_pack(packs[1], size)
    for root in (folder, *sorted(folder.glob("imagenette2*"))):
        if (root / "train").is_dir() and (root / "val").is_dir():
            return _shuffled(read_folder(root / "train", size, IMAGENETTE)), _shuffled(
                read_folder(root / "val", size, IMAGENETTE)
            )
    raise DataError(
        f"{folder} holds neither imagenette_train_128.npz and imagenette_val_128.npz nor an imagenette2 "
        "folder with train/ and val/"
    )


def read_cifar10(folder: Path, size: int = 32) -> tuple[Pictures, dict[str, Pictures]]:
    """(train, tests by name) from `cifar10_train_jpeg.npz`, `cifar10_test_jpeg.npz` and, where present,
    `cifar10_lossless_test1k.npz`."""
    train, test, lossless = (
        folder / f"cifar10_{part}.npz" for part in ("train_jpeg", "test_jpeg", "lossless_test1k")
    )
    if not (train.is_file() and test.is_file()):
        raise DataError(f"{folder} holds no {train.name} and {test.name}")
    tests = {"jpeg": read_pack(test, size)}
    if lossless.is_file():
        tests["lossless"] = read_pack(lossless, size)
    return read_pack(train, size), tests


def _shuffled(pictures: Pictures) -> Pictures:
    return pictures.take(np.random.default_rng(0).permutation(len(pictures)))
