"""BMP, TIFF, AVIF and HEIC: the decoder reads their headers too, in the process where it can be stopped.

So no walk through these containers is ours. Size, orientation and pages come from Pillow, and the limits are
checked there between header and pixels. Only camera raw files are found here, from a TIFF's first directory.
"""

from __future__ import annotations

from collections.abc import Callable

from ...errors import BadImage
from ..source import Limits, Source, first_directory

_DNG_VERSION, _KIND_OF_PICTURE, _COLOURS = 0xC612, 0x00FE, 0x0106
_RAW_COLOURS = (32_803, 34_892)  # colour filter array, linear raw


def screen(name: str) -> Callable[[bytes, Limits], Source]:
    """The screen of the format of this name."""
    return lambda data, limits: Source(data, name, orientation=0, untrusted_cost=True)


def screen_tiff(data: bytes, limits: Limits) -> Source:
    """BadImage for camera raw files, whose first page is a thumbnail or no picture that a person sees."""
    tags = {tag: number for tag, (_, _, number) in first_directory(data).items()}
    thumbnail = tags.get(_KIND_OF_PICTURE, 0) & 1
    if data[8:10] == b"CR" or thumbnail or _DNG_VERSION in tags or tags.get(_COLOURS) in _RAW_COLOURS:
        raise BadImage("this is a camera's raw file; export it as JPEG and send that")
    return Source(data, "TIFF", orientation=0, untrusted_cost=True)
