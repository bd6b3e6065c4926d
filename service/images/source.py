"""What screening a file gives, `Source`, under which `Limits`; and the refusals that all formats share."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ..errors import BadImage, TooLarge

MAX_PARTS = 20_000  # segments or chunks of one file; a 16 MiB PNG in the usual 8 KiB chunks has 2,000


@dataclass(frozen=True)
class Limits:
    """What a picture may cost. max_bytes: of the file. max_pixels, max_webp_pixels, max_side: as its header
    says, before decoding. max_scans: of a JPEG. decode_seconds: wall time of a picture that the header cannot
    vouch for, in the process where it can be stopped."""

    max_bytes: int = 16 * 2**20
    max_pixels: int = 40_000_000
    max_webp_pixels: int = 20_000_000
    max_side: int = 16_384
    max_scans: int = 100
    decode_seconds: float = 2.0


@dataclass(frozen=True)
class Source:
    """A screened file.

    data: the bytes a decoder needs. format: a name of IMAGE_FORMATS. width, height: as stored, before
    `orientation` (EXIF, 1 to 8). depth: bits of a PNG's sample. scans: of a JPEG. several: it holds more
    pictures than the first. untrusted_cost: what decoding costs cannot be told from the header, so decode it
    where it can be stopped. limits: under which it was screened.
    """

    data: bytes
    format: str
    width: int
    height: int
    orientation: int = 1
    depth: int = 8
    scans: int = 1
    several: bool = False
    untrusted_cost: bool = False
    limits: Limits = Limits()


def check_limit(limit: str, allowed: int, actual: int, unit: str) -> None:
    """TooLarge where `actual` is more than `allowed`."""
    if actual > allowed:
        raise TooLarge(
            f"the picture has {actual:,} {unit}; at most {allowed:,} are accepted",
            limit=limit,
            value=allowed,
            actual=actual,
        )


def check_size(width: int, height: int, limits: Limits, *, webp: bool = False) -> None:
    """BadImage or TooLarge where a header claims no pixels, or too many."""
    if not width or not height:
        raise BadImage("the picture has no pixels: its header says that its width or height is 0")
    check_limit("max_side", limits.max_side, max(width, height), "pixels on its longer side")
    check_limit("max_pixels", limits.max_pixels, width * height, "pixels")
    if webp:
        check_limit(
            "max_webp_pixels", limits.max_webp_pixels, width * height, "pixels, which is much for WebP"
        )


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
    """EXIF's orientation, 1 to 8; whatever is broken, missing or out of range counts as 1 (upright). Reads
    only the first directory's entries."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, directory)
        for at in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, kind, count, value = struct.unpack_from(order + "HHIH", tiff, at)
            if tag == 0x0112:
                return value if kind == 3 and count == 1 and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
