"""Bytes of a picture → upright RGB → what the network wants. Pure functions; reading bodies, threads and
batches are others' work.

`decode` takes these steps; whatever goes wrong is an InvalidInput (or Overloaded), never a decoder's own
exception:
 1. `screen`     format by its first bytes, size and limits from the header, orientation, only the bytes that
                 make the pixels; no decoder has run yet
 2. `pixels`     Pillow decodes; reduced where the caller needs less, upright, as a person sees it: alpha on
                 white, 16 bit, CMYK, palettes, grey
 3. `process`    the same in a process that can be stopped, for the few pictures whose cost the header does
                 not bound
and `preprocess` (in `placement`) the last one: the network's input, and where on the picture it lies.

Not done, and said: ICC profiles are ignored; of animations and multi-picture files the first picture is used,
with a warning.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import BadImage, PacaError
from .formats import FORMAT_NAMES, MEDIA_TYPES, accepted, recognise, screen
from .pixels import read_pixels
from .placement import Placement, needed_side, preprocess
from .process import decoder_process
from .source import Limits

__all__ = [
    "FORMAT_NAMES",
    "MEDIA_TYPES",
    "Decoded",
    "Limits",
    "Placement",
    "accepted",
    "decode",
    "needed_side",
    "preprocess",
    "recognise",
]


@dataclass(frozen=True)
class Decoded:
    """rgb: (h, w, 3) uint8, upright; smaller than the original (width, height) if `reduce_to` allowed it.
    format: a name of IMAGE_FORMATS."""

    rgb: np.ndarray
    width: int
    height: int
    format: str
    warnings: tuple[str, ...] = ()


def decode(data: bytes, limits: Limits, reduce_to: int | None = None) -> Decoded:
    """A file's bytes → pixels. reduce_to: the shorter side that the caller needs at least; see `needed_side`.
    (A progressive JPEG over 12 MP comes at half its size at most.) Raises NotAnImage, TooLarge or BadImage;
    Overloaded where too many costly pictures are at work."""
    try:
        source = screen(data, limits)
        rgb = (
            decoder_process.read_pixels(source, reduce_to, limits.decode_seconds)
            if source.untrusted_cost
            else read_pixels(source, reduce_to)
        )
    except PacaError:
        raise
    # what decoders raise on broken files is no contract: OSError, ValueError, SyntaxError, MemoryError and a
    # dozen more
    except Exception:
        raise BadImage(
            "the picture cannot be decoded: it is damaged or of an unusual kind; save it again as JPEG or "
            "PNG and resend"
        ) from None
    turned = source.orientation >= 5
    return Decoded(
        rgb,
        width=source.height if turned else source.width,
        height=source.width if turned else source.height,
        format=source.format,
        warnings=(f"this {source.format} file holds more than one picture; only the first was used",)
        if source.several
        else (),
    )
