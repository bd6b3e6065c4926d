"""Labelled pictures as the server will see them: packs, class folders and single files, through the server's
own reader. Needs no torch.

What training, evaluation and calibration look at is therefore, bit for bit, what the network gets when the
same file is sent to the server. Which files there are is the work of `service.folders`; which part of a data
set a folder is, that of `parts`.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service import images
from service.artifact import Preprocessing
from service.errors import PacaError, Unavailable
from service.folders import LeftOut, normal, readable, sub_folders, walk

Source = bytes | np.ndarray | Path  # an encoded file, pixels (H, W, 3) uint8, or where a file is
How = Preprocessing | int  # a number is the side of the square to which whole pictures are stretched
PACK_SHARE = 0.1  # the last pictures of a pack, which training holds out
TRIES = 20  # of a picture whose decoder is busy


class DataError(PacaError):
    """The data cannot be used; the message says in one line why and what is expected."""


@dataclass(frozen=True)
class Files:
    """Labelled files, not yet read. labels: (n,) int64, indices into classes; names: relative to the folder.
    left_out: what is no picture, "path: reason"."""

    paths: tuple[Path, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    names: tuple[str, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Calibration:
    """What int8 is calibrated on, and what judges it. calibrating, judging: (n, ...) and (m, ...), pictures
    as the network takes them, none in both. labels: (m,) int64, the model's classes of those that judge; None
    where nobody knows them, and then `unlabelled` says why."""

    calibrating: np.ndarray
    judging: np.ndarray
    labels: np.ndarray | None = None
    unlabelled: str = ""


def preprocessing(how: How) -> Preprocessing:
    """What a number stands for."""
    if isinstance(how, Preprocessing):
        return how
    return Preprocessing((how, how), "stretch", 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)


def prepare(source: Source, how: How) -> np.ndarray | str:
    """One picture as the network takes it, (H, W, 3) uint8, or why the server would refuse it."""
    wanted = preprocessing(how)
    for attempt in range(TRIES):
        try:
            if isinstance(source, np.ndarray):
                return images.preprocess(source, source.shape[1], source.shape[0], wanted)[0]
            data = source.read_bytes() if isinstance(source, Path) else source
            return images.read(data, images.Limits(), wanted).pixels
        except Unavailable as busy:  # many pictures that are costly to decode: they must wait, not be lost
            if attempt == TRIES - 1:
                return busy.message
            time.sleep(min(busy.retry_after, 5.0))
        except PacaError as error:
            return error.message
        except OSError as error:
            return f"{error.strerror}"
    raise AssertionError("every way out of the loop returns")


def prepare_all(sources: Sequence[Source], how: How) -> tuple[np.ndarray, list[str | None]]:
    """(n, H, W, 3) uint8, and for each picture None or why it cannot be read; the rows of those are zero.
    The one array is all the memory this takes."""
    out = np.zeros((len(sources), *preprocessing(how).size, 3), np.uint8)

    def fill(row: int) -> str | None:
        result = prepare(sources[row], how)
        if isinstance(result, str):
            return result
        out[row] = result
        return None

    with ThreadPoolExecutor() as pool:
        return out, list(pool.map(fill, range(len(sources))))


def fingerprints(pictures: np.ndarray) -> np.ndarray:
    """(n, H, W, 3) uint8 → (n,) uint64: equal for pictures that the network cannot tell apart, so for copies
    of a file and for the same pixels in another format."""
    digests = b"".join(hashlib.blake2b(p.tobytes(), digest_size=8).digest() for p in pictures)
    return np.frombuffer(digests, np.uint64)


def class_files(folder: Path, partial: bool = False) -> Files:
    """The pictures of a folder with one sub-folder a class, classes in alphabetical order, sub-folders inside
    allowed. DataError where there are not two classes, all with pictures; `partial`, where classes are known
    from elsewhere, is content with one."""
    folders = class_folders(folder, 1 if partial else 2)
    classes = tuple(readable(path.name) for path in folders)
    numbers = {path.name: number for number, path in enumerate(folders)}
    paths: list[Path] = []
    labels: list[int] = []
    left_out: list[str] = []
    for item in walk(folder):
        if isinstance(item, LeftOut):
            left_out.append(str(item))
            continue
        name = item.relative_to(folder)
        if len(name.parts) == 1:
            left_out.append(str(LeftOut(name, "in no class folder")))
        else:
            paths.append(item)
            labels.append(numbers[name.parts[0]])
    require_every_class(folder, classes, labels, partial)
    names = tuple(readable(path.relative_to(folder).as_posix()) for path in paths)
    return Files(tuple(paths), np.array(labels, np.int64), classes, names, tuple(left_out))


def require_every_class(
    folder: Path, classes: Sequence[str], labels: Iterable[int], partial: bool = False
) -> None:
    """DataError where a class has no picture; with `partial`, where none has."""
    present = set(labels)
    empty = [name for number, name in enumerate(classes) if number not in present]
    if empty and not (partial and present):
        few = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        raise DataError(f"no readable picture ({images.accepted()}) in the class folder {few} of {folder}")


def class_folders(folder: Path, at_least: int = 2) -> list[Path]:
    """The class folders in alphabetical order. DataError where there are too few, or where two have what is
    the same name for a reader."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    try:
        folders = sub_folders(folder)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}") from None
    if not folders:
        raise DataError(f"{folder} has no sub-folders; expected one sub-folder a class, at least two")
    if len(folders) < at_least:
        inside = _sub_folders_of(folders[0])
        hint = f"; did you mean {folders[0]}?" if len(inside) > 1 else ""
        raise DataError(
            f"{folder} has only one class, {folders[0].name}; a classifier needs at least two "
            f"sub-folders{hint}"
        )
    counts = Counter(readable(path.name) for path in folders)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise DataError(
            f"{folder} has two class folders named {twice[0]}, written in two forms of Unicode; put their "
            "pictures into one"
        )
    for path in folders:
        if not _is_text(readable(path.name)):
            raise DataError(
                f"{folder} has a class folder whose name is no UTF-8 text "
                f"({path.name.encode(errors='replace')!r}); rename it"
            )
    return folders


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


def match_classes(classes: tuple[str, ...], labels: tuple[str, ...], path: Path) -> np.ndarray:
    """(n,) int64, the model's class id of each of the data's classes: by name, or, where only one label can
    be meant, without regard to case, spaces and underscores. DataError where the model does not know one."""
    exact = {normal(label): i for i, label in enumerate(labels)}
    counts = Counter(_plain(label) for label in labels)
    loose = {_plain(label): i for i, label in enumerate(labels) if counts[_plain(label)] == 1}
    ids = [exact.get(normal(name), loose.get(_plain(name))) for name in classes]
    if None in ids:
        known = ", ".join(labels[:12]) + (", ..." if len(labels) > 12 else "")
        raise DataError(
            f"{path} has the class {classes[ids.index(None)]!r}, which the model does not know; it knows "
            f"{known}"
        )
    return np.array(ids, np.int64)


def _plain(name: str) -> str:
    return normal(name).casefold().replace("_", " ").strip()


def _sub_folders_of(folder: Path) -> list[Path]:
    try:
        return sub_folders(folder)
    except OSError:
        return []


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
