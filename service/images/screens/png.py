"""PNG: the chunks that make the picture, each with its checksum verified."""

from __future__ import annotations

import struct
import zlib

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

MAGIC = b"\x89PNG\r\n\x1a\n"


def screen(data: bytes, limits: Limits) -> Source:
    """Keeps the header, the palette, its transparency and the picture's data, each with its checksum
    verified."""
    view = memoryview(data)
    kept: list[bytes | memoryview] = [MAGIC]
    size: tuple[int, int] | None = None
    depth, orientation, several, pos = 8, 1, False, 8
    for _ in range(MAX_PARTS):
        if pos + 12 > len(data):
            raise truncated()
        length, kind = struct.unpack_from(">I4s", data, pos)
        start, pos = pos, pos + 12 + length
        if pos > len(data):
            raise truncated()
        if (size is None) != (kind == b"IHDR"):
            raise broken("it does not begin with its header, or has two")
        if kind == b"IHDR":
            if length != 13:
                raise broken("its header has the wrong length")
            size, depth = struct.unpack_from(">II", data, start + 8), data[start + 16]
            check_size(*size, limits)
        elif kind == b"eXIf":
            orientation = exif_orientation(data[start + 8 : pos - 4])
        elif kind == b"acTL":
            several = True
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            if zlib.crc32(view[start + 4 : pos - 4]) != int.from_bytes(data[pos - 4 : pos], "big"):
                raise broken("a checksum is wrong")
            kept.append(view[start:pos])
        if kind == b"IEND":
            break
    else:
        raise too_many_parts()
    assert size is not None  # noqa: S101  the first chunk was the header  # nosec B101
    return Source(b"".join(kept), "PNG", *size, orientation, depth, several=several)
