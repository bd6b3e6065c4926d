"""A screened `Source` → the pixels a person sees, upright, in one array; optionally smaller. The only file
that calls a decoder.

Peak memory beside the file is `bytes_per_pixel` of the format's row (or 20 MB: the cost of denser JPEGs is
untrusted). The picture becomes RGB in bands, straight into the upright array. Whatever Pillow raises goes
through: the caller makes it a BadImage.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from PIL import Image

from .formats import BY_NAME
from .source import ORIENTATION, Source, check_size

BAND_PIXELS = 1 << 19  # that become RGB at a time
# a larger one, which costs 6 bytes a pixel of coefficients, is decoded at half its size or less
MAX_FULL_PROGRESSIVE_PIXELS = 12_000_000


def read_pixels(source: Source, reduce_to: int | None = None) -> tuple[np.ndarray, Source]:
    """(h, w, 3) uint8, and the source with what only the decoder knew.

    With `reduce_to` both sides are divided by the largest whole number that keeps the shorter one ≥ reduce_to
    (JPEG: while decoding, in powers of two, then by averaging); a part of a pixel at the right or lower edge
    counts as one."""
    with opened(source) as (image, known):
        return load(image, known, reduce_to)


@contextmanager
def opened(source: Source) -> Iterator[tuple[Image.Image, Source]]:
    """The file with its header read: its size is known, no pixel is decoded."""
    row = BY_NAME[source.format]
    row.prepare()
    with Image.open(io.BytesIO(source.data), formats=(row.plugin,)) as image:
        if not source.width:
            width, height = image.size
            several = bool(getattr(image, "is_animated", False))
            source = replace(source, width=width, height=height, several=several)
        elif image.size != (source.width, source.height):
            raise ValueError("the decoder sees another size than the header says")
        yield image, source


def load(image: Image.Image, source: Source, reduce_to: int | None) -> tuple[np.ndarray, Source]:
    """The rest of `read_pixels`. TooLarge or BadImage where the header's size is not allowed."""
    check_size(source.width, source.height, source.limits)
    if source.format == "JPEG":
        _scale_while_decoding(image, source, reduce_to)
    image.load()
    if not source.orientation:
        if image.size != (source.width, source.height):
            raise ValueError("the picture is not of the size that its header says")
        source = replace(source, orientation=_left_to_turn(image))
    return _upright_rgb(image, source, max(1, min(image.size) // reduce_to) if reduce_to else 1), source


def _left_to_turn(image: Image.Image) -> int:
    """EXIF's orientation after loading: what the decoder has turned already, it no longer asks for."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # whatever Pillow raises on broken EXIF: the picture counts as upright
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _scale_while_decoding(image: Image.Image, source: Source, reduce_to: int | None) -> None:
    side = reduce_to or min(image.size)
    if source.scans > 1 and source.width * source.height > MAX_FULL_PROGRESSIVE_PIXELS:
        side = min(side, min(image.size) // 2)
    image.draft(None, (side, side))


def _upright_rgb(image: Image.Image, source: Source, factor: int) -> np.ndarray:
    width, height = image.size
    if width * height <= BAND_PIXELS:
        return np.ascontiguousarray(_turned(_values(image, source, factor), source.orientation))
    rows, columns = -(-height // factor), -(-width // factor)
    upright = np.empty((columns, rows, 3) if source.orientation >= 5 else (rows, columns, 3), np.uint8)
    stored = _turned(
        upright, {6: 8, 8: 6}.get(source.orientation, source.orientation)
    )  # writing into this view writes upright
    step = max(1, BAND_PIXELS // (width * factor)) * factor
    for top in range(0, height, step):
        values = _values(image.crop((0, top, width, min(top + step, height))), source, factor)
        stored[top // factor : top // factor + len(values)] = values
    return upright


def _values(band: Image.Image, source: Source, factor: int) -> np.ndarray:
    seen = _seen(band, source.depth)
    if factor > 1:
        seen = seen.reduce(factor)
    return np.asarray(seen if seen.mode == "RGB" else seen.convert("RGB"))


def _turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """A view of rows and columns as stored, with EXIF's orientation applied."""
    match orientation:
        case 2:
            return array[:, ::-1]
        case 3:
            return array[::-1, ::-1]
        case 4:
            return array[::-1]
        case 5:
            return array.swapaxes(0, 1)
        case 6:
            return np.rot90(array, -1)
        case 7:
            return array[::-1, ::-1].swapaxes(0, 1)
        case 8:
            return np.rot90(array, 1)
        case _:
            return array


def _seen(band: Image.Image, depth: int) -> Image.Image:
    """Mode L or RGB, as on white paper. 16-bit samples lose their lower byte; one colour marked as
    transparent becomes white. ICC profiles were dropped: colours are taken as sRGB, CMYK by its plain
    formula. ValueError for samples whose black and white nobody knows: 32-bit numbers and fractions."""
    if band.mode in ("I", "F"):
        raise ValueError("samples of 32 bits")
    key = band.info.get("transparency")
    if band.mode in ("RGBA", "LA", "PA") or (band.mode == "P" and key is not None):
        coloured = band.convert("RGBA")
        paper = Image.new("RGB", band.size, "white")
        paper.paste(coloured, mask=coloured)
        return paper
    wide = band.mode.startswith("I;16")
    seen = band if wide or band.mode in ("L", "RGB") else band.convert("L" if band.mode == "1" else "RGB")
    if not wide and key is None:
        return seen
    values = np.asarray(seen)
    eight = (values >> 8).astype(np.uint8) if wide else values
    if key is None:
        return Image.fromarray(eight)
    if band.mode == "L":
        key *= 255 // (2**depth - 1)  # Pillow stretches narrow samples, but not the key
    elif band.mode == "RGB" and depth == 16:
        key = [sample >> 8 for sample in key]
    clear = (values == np.array(key)).reshape(*values.shape[:2], -1).all(-1)
    eight = eight.copy()
    eight[clear] = 255
    return Image.fromarray(eight)
