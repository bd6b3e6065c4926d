"""A screened `Source` → the pixels a person sees, upright, in one array; optionally smaller. The only file
that calls a decoder.

Peak memory beside the file: JPEG and PNG at most 8 bytes a pixel (or 20 MB: the cost of denser ones is
untrusted), WebP 16 (its library keeps two canvases); the picture becomes RGB in bands, straight into the
upright array. Whatever Pillow raises goes through: the caller makes it a BadImage.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from .formats import BY_NAME
from .source import Source

BAND_PIXELS = 1 << 19  # that become RGB at a time
# a larger one, which costs 6 bytes a pixel of coefficients, is decoded at half its size or less
MAX_FULL_PROGRESSIVE_PIXELS = 12_000_000


def read_pixels(source: Source, reduce_to: int | None = None) -> np.ndarray:
    """(h, w, 3) uint8. With `reduce_to` both sides are divided by the largest whole number that keeps the
    shorter one ≥ reduce_to (JPEG: while decoding, in powers of two, then by averaging); a part of a pixel at
    the right or lower edge counts as one."""
    with Image.open(io.BytesIO(source.data), formats=(BY_NAME[source.format].plugin,)) as image:
        if image.size != (source.width, source.height):
            raise ValueError("the decoder sees another size than the header says")
        if source.format == "JPEG":
            _scale_while_decoding(image, source, reduce_to)
        image.load()
        return _upright_rgb(image, source, max(1, min(image.size) // reduce_to) if reduce_to else 1)


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
    formula."""
    key = band.info.get("transparency")
    if band.mode in ("RGBA", "LA", "PA") or (band.mode == "P" and key is not None):
        coloured = band.convert("RGBA")
        paper = Image.new("RGB", band.size, "white")
        paper.paste(coloured, mask=coloured)
        return paper
    seen = band if band.mode in ("L", "RGB", "I;16") else band.convert("L" if band.mode == "1" else "RGB")
    if seen.mode != "I;16" and key is None:
        return seen
    values = np.asarray(seen)
    eight = (values >> 8).astype(np.uint8) if seen.mode == "I;16" else values
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
