"""Which files in a folder are pictures: one walk for the command line, training, evaluation and calibration.

A file is what its first bytes say, whatever it is called. Hidden folders and files, and those that operating
systems leave behind, are never read. Links are followed, each folder once. Whatever is left out is named with
its reason. Decoding is the work of `images`.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .images import accepted, recognise
from .images.formats import HEAD_BYTES

# what operating systems, file servers and archivers put beside people's files
LITTER = frozenset(
    {
        "__macosx",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "icon\r",
        "@eadir",
        "#recycle",
        "$recycle.bin",
        "system volume information",
        "lost+found",
    }
)
HIDDEN = "hidden, or put there by the operating system"
EXAMPLES = 3  # files named for each reason in a summary


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that is not read. path: relative to the folder walked."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path.as_posix()}: {self.reason}"


@dataclass(frozen=True)
class Listing:
    """What a folder holds, in the order of the walk."""

    pictures: tuple[Path, ...]
    left_out: tuple[LeftOut, ...]


def list_pictures(root: Path) -> Listing:
    """The whole walk at once."""
    found = list(walk(root))
    return Listing(
        tuple(item for item in found if isinstance(item, Path)),
        tuple(item for item in found if isinstance(item, LeftOut)),
    )


def walk(root: Path) -> Iterator[Path | LeftOut]:
    """Every picture in `root` and below, and everything left out, as the walk comes by; sorted by name, the
    same on every machine. No file is held open or read beyond its first bytes."""
    seen: set[tuple[int, int]] = set()
    levels: list[Iterator[Path | LeftOut]] = [_entries(root, root, seen)]
    while levels:
        item = next(levels[-1], None)
        if item is None:
            levels.pop()
        elif isinstance(item, LeftOut):
            yield item
        elif os.path.isdir(item):
            levels.append(_entries(item, root, seen))
        elif reason := why_no_picture(item):
            yield LeftOut(item.relative_to(root), reason)
        else:
            yield item


def sub_folders(root: Path) -> list[Path]:
    """The folders in `root` that are not hidden, sorted. Raises OSError."""
    return sorted(
        (path for path in root.iterdir() if os.path.isdir(path) and not is_hidden(path.name)),
        key=lambda path: _order(path.name),
    )


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is never read."""
    return name.startswith(".") or name.casefold() in LITTER


def normal(name: str) -> str:
    """A name in the form in which names are compared: macOS writes "é" as two characters, others as one."""
    return unicodedata.normalize("NFC", name)


def readable(name: str) -> str:
    """A file's name as text, whatever the machine's locale took its bytes for: UTF-8, where they are that."""
    try:
        return normal(os.fsencode(name).decode())
    except UnicodeError:
        return normal(name)


def why_no_picture(path: Path) -> str | None:
    """The reason to leave a file out; None for a picture in an accepted format, as far as its first bytes
    tell."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "no ordinary file"
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        return "a link to nothing" if path.is_symlink() and not os.path.exists(path) else f"{error.strerror}"
    if not head:
        return "empty"
    return None if recognise(head) else f"no {accepted()}"


def summary(left_out: Iterable[object], examples: int = EXAMPLES) -> list[str]:
    """One line a reason: how many files, and the first of them. left_out: `LeftOut`, or their text."""
    by_reason: dict[str, list[str]] = {}
    for item in left_out:
        path, _, reason = str(item).partition(": ")
        by_reason.setdefault(reason, []).append(path)
    return [_line(reason, paths, examples) for reason, paths in by_reason.items()]


def _line(reason: str, paths: Sequence[str], examples: int) -> str:
    if len(paths) == 1:
        return f"{paths[0]}: {reason}"
    more = ", …" if len(paths) > examples else ""
    return f"{len(paths)} files: {reason} ({', '.join(paths[:examples])}{more})"


def _entries(folder: Path, root: Path, seen: set[tuple[int, int]]) -> Iterator[Path | LeftOut]:
    """What stands in one folder; nothing but a reason if it cannot be opened or was walked before."""
    where = folder.relative_to(root)
    try:
        info = folder.stat()
        if (info.st_dev, info.st_ino) in seen:
            yield LeftOut(where, "a link to a folder that is read already")
            return
        seen.add((info.st_dev, info.st_ino))
        names = sorted(os.listdir(folder), key=_order)
    except OSError as error:
        yield LeftOut(where, f"{error.strerror}")
        return
    for name in names:
        yield LeftOut(where / name, HIDDEN) if is_hidden(name) else folder / name


def _order(name: str) -> tuple[str, str]:
    return readable(name), name
