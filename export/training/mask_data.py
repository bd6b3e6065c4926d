"""Pictures with masks: a folder with `images/` and `masks/` (PNG, a pixel is its class's id, 255 = not
judged), and `classes.txt` with the classes' names if they are to have some.

A picture whose mask is missing, of another size or holds an unknown id is left out, each said in one line.
What the network sees of a picture comes from the server's reader.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from service import images
from service.artifact import MAX_SEGMENTS, Preprocessing
from service.errors import PacaError
from service.folders import list_pictures

from ..labels import numbered, read_labels
from ..pictures import DataError

IGNORED = 255  # a pixel that counts neither in training nor in evaluation
IMAGES, MASKS, CLASSES = "images", "masks", "classes.txt"
LONGEST_SCORED = 1024  # pixels along the longer side at which masks are scored


@dataclass(frozen=True)
class MaskedPicture:
    """One picture whose mask was checked. mask: (H, W) uint8, of the upright picture's size, at most
    `LONGEST_SCORED` long."""

    name: str
    path: Path
    mask: np.ndarray
    width: int
    height: int

    def seen(self, how: Preprocessing) -> np.ndarray:
        """(H, W, 3) uint8, what the network sees of it."""
        return images.read(self.path.read_bytes(), images.Limits(), how).pixels


@dataclass(frozen=True)
class MaskedPictures:
    """pictures: in the order of their names. skipped: what was left out, "name: reason"."""

    pictures: tuple[MaskedPicture, ...]
    classes: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pictures)

    def take(self, rows: Sequence[int] | np.ndarray) -> MaskedPictures:
        return MaskedPictures(tuple(self.pictures[i] for i in rows), self.classes)


def read_masks(folder: Path, classes: tuple[str, ...] | None = None) -> MaskedPictures:
    """Every picture of the folder with its mask. classes: those of a model, where it is to be evaluated.
    DataError where there is none, or the folder is of another form."""
    for part in (IMAGES, MASKS):
        if not (folder / part).is_dir():
            raise DataError(
                f"{folder} has no folder {part}/; expected {IMAGES}/ and {MASKS}/ with PNG of class ids"
            )
    classes = classes or _named(folder)
    listing = list_pictures(folder / IMAGES)
    skipped = [str(item) for item in listing.left_out]
    masks: dict[str, Path] = {path.stem: path for path in sorted((folder / MASKS).glob("*.png"))}
    found: list[MaskedPicture] = []
    for path in listing.pictures:
        result = _checked(path, masks.get(path.stem), len(classes) if classes else MAX_SEGMENTS - 1)
        if isinstance(result, str):
            skipped.append(f"{path.name}: {result}")
        else:
            found.append(result)
    if not found:
        raise DataError(
            f"{folder} holds no picture with a usable mask; {'; '.join(skipped[:3]) or 'it is empty'}"
        )
    if classes is None:
        classes = numbered(1 + max(int(p.mask[p.mask != IGNORED].max(initial=0)) for p in found))
    return MaskedPictures(tuple(found), classes, tuple(skipped))


def _named(folder: Path) -> tuple[str, ...] | None:
    """The names in classes.txt, None where there is none."""
    if not (folder / CLASSES).is_file():
        return None
    try:
        return read_labels(folder / CLASSES)
    except ValueError as error:
        raise DataError(str(error)) from None


def _checked(path: Path, mask: Path | None, classes: int) -> MaskedPicture | str:
    """The picture with its mask, or why they cannot be used."""
    if mask is None:
        return f"there is no {MASKS}/{path.stem}.png"
    try:
        picture = images.decode(path.read_bytes(), images.Limits(), 1)
        ids = read_ids(mask)
    except PacaError as error:
        return error.message
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if ids.shape != (picture.height, picture.width):
        return (
            f"its mask is {ids.shape[1]} x {ids.shape[0]} pixels, the upright picture {picture.width} x "
            f"{picture.height}"
        )
    strange = [int(i) for i in np.unique(ids) if i >= classes and i != IGNORED]
    if strange:
        return f"its mask holds the id {strange[0]}; there are {classes} classes, from 0 (255 = ignore)"
    if (ids == IGNORED).all():
        return "its mask says nothing: every pixel is 255"
    return MaskedPicture(path.name, path, _shrunk(ids), picture.width, picture.height)


def read_ids(path: Path) -> np.ndarray:
    """(H, W) uint8: the ids of a mask, of grey or palette PNG. DataError for any other kind."""
    try:
        with Image.open(io.BytesIO(path.read_bytes()), formats=("PNG",)) as image:
            if image.mode not in ("L", "P", "1"):
                raise DataError(
                    "its mask has colours; a mask is a grey or palette PNG whose pixels are class ids"
                )
            return np.asarray(image).astype(np.uint8)
    except DataError:
        raise
    except Exception:  # what Pillow raises on broken files is no contract
        raise DataError("its mask is no PNG that can be read") from None


def _shrunk(ids: np.ndarray) -> np.ndarray:
    """At most `LONGEST_SCORED` long; ids are never mixed."""
    longest = max(ids.shape)
    if longest <= LONGEST_SCORED:
        return ids
    height, width = (max(1, round(side * LONGEST_SCORED / longest)) for side in ids.shape)
    return np.asarray(Image.fromarray(ids).resize((width, height), Image.Resampling.NEAREST))


def split(pictures: MaskedPictures, share: float, seed: int) -> tuple[MaskedPictures, MaskedPictures]:
    """(train, held out), by chance, the same for the same names and seed. DataError where there are too
    few."""
    count = max(1, round(share * len(pictures)))
    if len(pictures) - count < 2:
        raise DataError(
            f"{len(pictures)} pictures with masks are too few to train and to judge; give at least 3"
        )
    order = np.random.default_rng(seed).permutation(len(pictures))
    return pictures.take(np.sort(order[count:])), pictures.take(np.sort(order[:count]))
