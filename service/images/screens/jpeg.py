"""JPEG: the segments that make the picture, up to the end marker."""

from __future__ import annotations

import re
from collections.abc import Iterator

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
# ends entropy-coded data, in which 0xFF is followed by 0, a restart, or in damaged files by anything below
_AFTER_SCAN = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
_SCAN, _END = 0xDA, 0xD9
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_TABLES = (0xC4, 0xDB, 0xDD)  # Huffman, quantisation, restart interval


def screen(data: bytes, limits: Limits) -> Source:
    """Keeps the tables, the frame, the scans, JFIF and Adobe."""
    kept: list[bytes | memoryview] = [b"\xff\xd8"]
    size: tuple[int, int] | None = None
    orientation, several, coefficients, scans = 1, False, 0.0, 0
    for kind, body, whole in _segments(data):
        if kind in _FRAMES:
            if size or len(body) < 6:
                raise broken("it has more than one header, or an empty one")
            size = (int.from_bytes(body[3:5], "big"), int.from_bytes(body[1:3], "big"))
            check_size(*size, limits)
            coefficients = 2 * _samples(bytes(body[7 : 6 + 3 * body[5] : 3]))
        elif kind == _SCAN:
            if not size:
                raise broken("it has no header")
            scans += 1
        elif 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            raise BadImage(
                "this kind of JPEG (lossless, hierarchical or arithmetic-coded) is not accepted; save it as "
                "a usual JPEG"
            )
        elif kind == 0xE1 and body[:5] == b"Exif\0" and orientation == 1:
            orientation = exif_orientation(bytes(body[6:]))
        elif kind == 0xE2 and body[:4] == b"MPF\0":
            several = True
        if (
            kind in (*_FRAMES, *_TABLES, _SCAN, _END)
            or (kind == 0xE0 and body[:5] == b"JFIF\0")
            or (kind == 0xEE and body[:5] == b"Adobe")
        ):
            kept.append(whole)
    if not size or not scans:
        raise broken("it has no picture data")
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
        b"".join(kept),
        "JPEG",
        *size,
        orientation,
        scans=scans,
        several=several,
        untrusted_cost=untrusted_cost,
    )


def _segments(data: bytes) -> Iterator[tuple[int, memoryview, memoryview]]:
    """(kind, body, the whole with its marker) of every segment up to the end marker. A scan's whole goes on
    to the end of its entropy-coded data."""
    view = memoryview(data)
    pos = 2
    for _ in range(MAX_PARTS):
        found = _MARKER.search(data, pos, pos + MAX_JUNK_BYTES)
        if not found:
            if pos + MAX_JUNK_BYTES > len(data):
                raise truncated()
            raise broken("there is no segment where one should be")
        start = found.end()
        kind = data[start - 1]
        if kind == _END:
            yield kind, view[:0], view[start - 2 : start]
            return
        if kind == 0x01 or 0xD0 <= kind <= 0xD7:
            pos = start
            continue
        if kind == 0xD8 or kind < 0xC0:
            raise broken("it has no picture data where it should begin")
        end = start + int.from_bytes(data[start : start + 2], "big")
        if end < start + 2:
            raise broken("a segment has no length")
        if end > len(data):
            raise truncated()
        pos = end
        if kind == _SCAN:
            ended = _AFTER_SCAN.search(data, end)
            if not ended:
                raise truncated()
            pos = ended.start()
        yield kind, view[start + 2 : end], view[start - 2 : pos]
    raise too_many_parts()


def _samples(factors: bytes) -> float:
    """Samples a pixel of a JPEG, from its components' sampling factors (horizontal in the upper four
    bits)."""
    sides = [(factor >> 4, factor & 15) for factor in factors]
    most = max((h for h, _ in sides), default=1) * max((v for _, v in sides), default=1)
    return sum(h * v for h, v in sides) / max(1, most)
