"""JPEG: the segments up to the first scan, and everything from there to the end marker."""

from __future__ import annotations

import re

from ...errors import BadImage
from ..source import (
    MAX_PARTS,
    Limits,
    Source,
    broken,
    check_size,
    exif_orientation,
    too_many_parts,
    truncated,
)

MAX_JUNK_BYTES = 4096  # bytes between two segments of a JPEG that are passed over
MAX_SCANNED_PIXELS = (
    480e6  # scans x pixels of a JPEG that may decode in a thread: 12 scans (10 are usual) of 40 MP take 1.2 s
)
# bytes of coefficients a pixel; a JPEG in several scans keeps all of them: 3 with halved colour planes, 6
# with full ones
DENSE_BYTES_PER_PIXEL = 4
DENSE_PIXELS = 2_000_000  # a denser one may decode in a thread up to here, where it takes 20 MB
_MARKER = re.compile(rb"\xff[^\x00\xff]")


def screen(data: bytes, limits: Limits) -> Source:
    """Walks the segments up to the first scan and keeps the tables, the frame, JFIF and Adobe; from there on
    everything up to the end marker. Inside entropy-coded data 0xFF is always followed by 0, so a marker's two
    bytes are that marker."""
    kept: list[bytes | memoryview] = [b"\xff\xd8"]
    size: tuple[int, int] | None = None
    orientation, several, coefficients, pos = 1, False, 0.0, 2
    for _ in range(MAX_PARTS):
        found = _MARKER.search(data, pos, pos + MAX_JUNK_BYTES)
        if not found:
            if pos + MAX_JUNK_BYTES > len(data):
                raise truncated()
            raise broken("there is no segment where one should be")
        kind, start = data[found.end() - 1], found.end()
        if kind == 0xDA:
            break
        if kind == 0x01 or 0xD0 <= kind <= 0xD7:
            pos = start
            continue
        if kind in (0xD8, 0xD9) or kind < 0xC0:
            raise broken("it has no picture data where it should begin")
        pos = start + int.from_bytes(data[start : start + 2], "big")
        if pos < start + 2:
            raise broken("a segment has no length")
        if pos > len(data):
            raise truncated()
        body = data[start + 2 : pos]
        if kind in (0xC0, 0xC1, 0xC2):
            if size or len(body) < 6:
                raise broken("it has more than one header, or an empty one")
            size = (int.from_bytes(body[3:5], "big"), int.from_bytes(body[1:3], "big"))
            check_size(*size, limits)
            coefficients = 2 * _samples(body[7 : 6 + 3 * body[5] : 3])
        elif 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            raise BadImage(
                "this kind of JPEG (lossless, hierarchical or arithmetic-coded) is not accepted; save it as "
                "a usual JPEG"
            )
        elif kind == 0xE1 and body.startswith(b"Exif\0") and orientation == 1:
            orientation = exif_orientation(body[6:])
        elif kind == 0xE2 and body.startswith(b"MPF\0"):
            several = True
        if (
            kind < 0xE0
            or (kind == 0xE0 and body.startswith(b"JFIF\0"))
            or (kind == 0xEE and body.startswith(b"Adobe"))
        ):
            kept.append(data[start - 2 : pos])
    else:
        raise too_many_parts()
    if not size:
        raise broken("it has no header")
    end = data.find(b"\xff\xd9", start) + 2
    if end < 2:
        raise truncated()
    picture = data[start - 2 : end]
    scans = picture.count(b"\xff\xda")
    if scans > limits.max_scans:
        raise BadImage(
            f"the JPEG has {scans} scans; at most {limits.max_scans} are accepted. Save it again as a usual "
            "JPEG",
            limit="max_scans",
            value=limits.max_scans,
            actual=scans,
        )
    pixels = size[0] * size[1]
    untrusted_cost = scans * pixels > MAX_SCANNED_PIXELS or (
        scans > 1 and coefficients >= DENSE_BYTES_PER_PIXEL and pixels > DENSE_PIXELS
    )
    return Source(
        b"".join([*kept, picture]),
        "JPEG",
        *size,
        orientation,
        scans=scans,
        several=several,
        untrusted_cost=untrusted_cost,
    )


def _samples(factors: bytes) -> float:
    """Samples a pixel of a JPEG, from its components' sampling factors (horizontal in the upper four
    bits)."""
    sides = [(factor >> 4, factor & 15) for factor in factors]
    most = max((h for h, _ in sides), default=1) * max((v for _, v in sides), default=1)
    return sum(h * v for h, v in sides) / max(1, most)
