"""The one reader of pictures: file → pixels → the network's input. The server, evaluation, calibration and
training all read through here, so all of them see the same.

Blocking; who decides in which thread it runs is `decoding`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..artifact import Preprocessing
from ..errors import BadImage, PacaError
from .formats import BY_NAME, screen
from .pixels import read_pixels
from .placement import Placement, needed_side, preprocess
from .process import decoder_processes
from .source import Limits, Source


@dataclass(frozen=True)
class Decoded:
    """rgb: (h, w, 3) uint8, upright; smaller than the original (width, height) if `reduce_to` allowed it.
    format: a name of IMAGE_FORMATS."""

    rgb: np.ndarray
    width: int
    height: int
    format: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class NetworkInput:
    """pixels: (H, W, 3) uint8, what the network sees; placement: where on the picture that is; decoded: the
    picture itself, as large as was needed for it."""

    pixels: np.ndarray
    placement: Placement
    decoded: Decoded


def read(data: bytes, limits: Limits, preprocessing: Preprocessing) -> NetworkInput:
    """A file's bytes → the network's input, bit for bit the server's. Raises NotAnImage, TooLarge or
    BadImage; Overloaded where the process for pictures of untrusted cost cannot be started."""
    return prepare(screen(data, limits), preprocessing)


def prepare(source: Source, preprocessing: Preprocessing) -> NetworkInput:
    """The part of `read` that comes after screening."""
    decoded = decode_source(source, needed_side(preprocessing))
    pixels, placement = preprocess(decoded.rgb, decoded.width, decoded.height, preprocessing)
    return NetworkInput(pixels, placement, decoded)


def decode(data: bytes, limits: Limits, reduce_to: int | None = None) -> Decoded:
    """A file's bytes → pixels. reduce_to: the shorter side that the caller needs at least; see `needed_side`.
    (A progressive JPEG over 12 MP comes at half its size at most.) Raises as `read` does."""
    return decode_source(screen(data, limits), reduce_to)


def decode_source(source: Source, reduce_to: int | None = None) -> Decoded:
    """The part of `decode` that comes after screening. A picture of untrusted cost waits here for a process
    that is free."""
    try:
        read_here = decoder_processes.read_pixels if source.untrusted_cost else read_pixels
        rgb, source = read_here(source, reduce_to)
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
        warnings=(f"this {source.format} file holds {BY_NAME[source.format].several}",)
        if source.several
        else (),
    )
