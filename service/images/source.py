"""What screening a file gives, `Source`, under which `Limits`; and the refusals that all formats share."""

from __future__ import annotations

import struct
from contextlib import suppress
from dataclasses import dataclass

from ..errors import BadImage, TooLarge

MAX_PARTS = 20_000  # segments or chunks of one file; a 16 MiB PNG in the usual 8 KiB chunks has 2,000
ORIENTATION = 0x0112  # EXIF's tag
SHORT = 3  # TIFF's type of a 16-bit number
BYTES_PER_PIXEL = 8  # that max_pixels counts on; a format that needs more may have fewer pixels


@dataclass(frozen=True)
class Limits:
    """What a picture may cost.

    max_bytes: of the file. max_pixels, max_side: as its header says, before decoding. max_scans: of a JPEG.
    decode_seconds: of a core, for a picture that the header cannot vouch for, in the process where it can be
    stopped.
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 64_000_000
    max_side: int = 16_384
    max_scans: int = 100
    decode_seconds: float = 4.0


@dataclass(frozen=True)
class Source:
    """A screened file.

    data: the bytes a decoder needs. format: a name of IMAGE_FORMATS. width, height: as stored, before
    `orientation` (EXIF, 1 to 8); all 0 where the decoder reads the header. depth: bits of a PNG's sample.
    scans: of a JPEG. several: it holds more pictures than the first. untrusted_cost: what
    decoding costs cannot be told from the header, so decode it where it can be stopped. limits: those of its
    format.
    """

    data: bytes
    format: str
    width: int = 0
    height: int = 0
    orientation: int = 1
    depth: int = 8
    scans: int = 1
    several: bool = False
    untrusted_cost: bool = False
    limits: Limits = Limits()


SETTINGS = {"max_bytes": "PACA_MAX_BODY_MB", "max_pixels": "PACA_MAX_PIXELS"}


def check_limit(limit: str, allowed: int, actual: int, unit: str) -> None:
    """TooLarge where `actual` is more than `allowed`."""
    if actual > allowed:
        raise TooLarge(
            f"the picture has {actual:,} {unit}; at most {allowed:,} are accepted"
            + (f" of this format ({SETTINGS[limit]} sets the limit)" if limit in SETTINGS else ""),
            limit=limit,
            value=allowed,
            actual=actual,
        )


def check_size(width: int, height: int, limits: Limits) -> None:
    """BadImage or TooLarge where a header claims no pixels, or too many."""
    if not width or not height:
        raise BadImage("the picture has no pixels: its header says that its width or height is 0")
    check_limit("max_side", limits.max_side, max(width, height), "pixels on its longer side")
    check_limit("max_pixels", limits.max_pixels, width * height, "pixels")


def truncated() -> BadImage:
    return BadImage("the picture is truncated: the file ends before the picture does; send the whole file")


def broken(what: str) -> BadImage:
    return BadImage(f"the picture is damaged: {what}; save it again and resend")


def too_many_parts() -> BadImage:
    return BadImage(
        "the file consists of an unreasonable number of parts; save it again and resend",
        limit="max_parts",
        value=MAX_PARTS,
    )


def exif_orientation(tiff: bytes) -> int:
    """EXIF's orientation, 1 to 8; whatever is broken, missing or out of range counts as 1 (upright)."""
    kind, count, value = first_directory(tiff).get(ORIENTATION, (SHORT, 1, 1))
    return value if (kind, count) == (SHORT, 1) and 1 <= value <= 8 else 1


def first_directory(tiff: bytes) -> dict[int, tuple[int, int, int]]:
    """tag: (type, count, first number) of a TIFF's first directory, as far as it goes; of equal tags the
    first. The number is one only where it stands in the entry itself."""
    found: dict[int, tuple[int, int, int]] = {}
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return found
    with suppress(struct.error):  # the file ends before the directory does
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, directory)
        for at in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, kind, count = struct.unpack_from(order + "HHI", tiff, at)
            (value,) = struct.unpack_from(order + ("H" if kind == SHORT else "I"), tiff, at + 8)
            found.setdefault(tag, (kind, count, value))
    return found
