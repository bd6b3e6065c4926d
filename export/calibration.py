"""The pictures that int8 is calibrated and judged on: a folder or a pack of the user's, prepared exactly as
the server prepares them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from service.artifact import Preprocessing
from service.errors import PacaError
from service.images import Limits, decode, needed_side, preprocess
from service.options import SUFFIXES

MOST = 512  # pictures; more change the ranges no further


def read_pictures(source: Path, how: Preprocessing) -> np.ndarray:
    """(n, H, W, 3) uint8 of up to `MOST` pictures: files below a folder, or rows of a .npz pack (`jpeg`,
    `offset`). ValueError where there are none."""
    found = []
    for data in _files(source):
        try:
            picture = decode(data, Limits(), needed_side(how))
        except PacaError:
            continue  # what the server would refuse cannot be typical of what it will see
        found.append(preprocess(picture.rgb, picture.width, picture.height, how)[0])
        if len(found) == MOST:
            break
    if not found:
        raise ValueError(
            f"{source} holds no readable pictures; give a folder with {', '.join(sorted(SUFFIXES))} or a "
            ".npz pack"
        )
    return np.stack(found)


def _files(source: Path) -> Iterator[bytes]:
    if source.suffix == ".npz" and source.is_file():
        with np.load(source) as pack:
            data, offset = pack["jpeg"].tobytes(), pack["offset"]
        for start, end in itertools.pairwise(offset):
            yield data[start:end]
    elif source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.suffix.lower() in SUFFIXES:
                yield path.read_bytes()
