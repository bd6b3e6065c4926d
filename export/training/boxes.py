"""Boxes that people drew around objects: `boxes.csv` in a folder of pictures."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from service import images
from service.artifact import Preprocessing
from service.errors import PacaError
from service.folders import normal

from .data import DataError
from .map_metrics import Fractions

FILE = "boxes.csv"
PATHS = ("path", "file", "name", "image", "filename")  # what the first column may be called
SIDES = ("x0", "y0", "x1", "y1")


def read_boxes(folder: Path) -> dict[str, list[Fractions]]:
    """Relative path → its boxes, x0, y0, x1, y1 as fractions of width and height; empty where there is no
    file. Columns in that order, or under their names in a first line. DataError names the line that is wrong.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV: {error}") from None
    head = [cell.strip().casefold() for cell in rows[0]] if rows else []
    named = set(SIDES) <= set(head)
    columns: Sequence[int] = range(5)
    if named:
        columns = [next((head.index(n) for n in PATHS if n in head), 0), *map(head.index, SIDES)]
    found: dict[str, list[Fractions]] = {}
    for number, row in enumerate(rows[named:], 1 + named):
        if not any(row):
            continue
        try:
            name, *sides = (row[i].strip() for i in columns)
            x0, y0, x1, y1 = map(float, sides)
        except (ValueError, IndexError):
            raise _wrong(path, number) from None
        if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
            raise _wrong(path, number)
        found.setdefault(normal(PurePosixPath(name.replace("\\", "/")).as_posix()), []).append(
            (x0, y0, x1, y1)
        )
    return found


def seen(file: Path, boxes: list[Fractions], how: Preprocessing) -> list[Fractions]:
    """The boxes as fractions of what the network sees of the picture; DataError where it cannot be read."""
    try:
        place = images.read(file.read_bytes(), images.Limits(), how).placement
    except (OSError, PacaError) as error:
        raise DataError(f"{file} has a box and cannot be read: {error}") from None
    width, height = place.x1 - place.x0, place.y1 - place.y0
    return [
        (
            (x0 * place.width - place.x0) / width,
            (y0 * place.height - place.y0) / height,
            (x1 * place.width - place.x0) / width,
            (y1 * place.height - place.y0) / height,
        )
        for x0, y0, x1, y1 in boxes
    ]


def _wrong(path: Path, line: int) -> DataError:
    return DataError(
        f"{path} line {line}: expected a relative path and x0, y0, x1, y1 as fractions of width and height, "
        "0 to 1"
    )
