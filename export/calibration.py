"""The pictures that int8 is calibrated and judged on: class folders, any other folder of pictures, or a pack,
prepared exactly as the server prepares them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from service.artifact import Preprocessing
from service.folders import list_pictures
from service.images import accepted

from .pictures import DataError, Source, open_pack, prepare

MAX_PICTURES = 512  # more change the ranges no further


def read_pictures(source: Path, how: Preprocessing) -> np.ndarray:
    """(n, H, W, 3) uint8 of up to `MAX_PICTURES` pictures, evenly from all that there are, so from every
    class: files below a folder, or rows of a .npz pack. ValueError where there are none.

    What the server would refuse is passed over: it cannot be typical of what the server will see.
    """
    sources = _sources(source)
    rows = np.linspace(0, len(sources), min(len(sources), MAX_PICTURES), endpoint=False).astype(int)
    found = [picture for row in rows if isinstance(picture := prepare(sources[row], how), np.ndarray)]
    if not found:
        raise ValueError(
            f"{source} holds no readable pictures; give a folder with {accepted()} files or a .npz pack"
        )
    return np.stack(found)


def _sources(source: Path) -> Sequence[Source]:
    if source.is_file():
        try:
            return open_pack(source)[0]
        except DataError as error:
            raise ValueError(str(error)) from None
    return list_pictures(source).pictures if source.is_dir() else []
