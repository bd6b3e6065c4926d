"""WebP: the RIFF chunks of the first picture and its alpha."""

from __future__ import annotations

import struct

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

HEADER_BYTES = 10  # of a chunk, in which the size stands
FRAMES = (b"VP8 ", b"VP8L", b"ANMF")


def screen(data: bytes, limits: Limits) -> Source:
    """Keeps the header, the picture (of an animation the first one) and its alpha. A few hundred bytes of
    lossless data can claim a gigabyte of tables, whatever the picture's size: only plain lossy WebP is not
    `untrusted_cost`."""
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise truncated()
    view = memoryview(data)
    chunks: list[bytes | memoryview] = []
    size: tuple[int, int] | None = None
    framed, plain, several, orientation, pos = False, True, False, 1, 12
    for _ in range(MAX_PARTS):
        if pos + 8 > end:
            break
        kind, length = struct.unpack_from("<4sI", data, pos)
        start, body, stop = pos, pos + 8, pos + 8 + length
        pos = stop + length % 2
        if stop > end:
            raise truncated()
        if size is None:
            size = _size(kind, data[body : min(stop, body + HEADER_BYTES)])
            check_size(*size, limits)
            if kind == b"VP8X":
                flags = data[body] & 0x12  # alpha and animation; what else it announces is dropped
                chunks += [view[start:body], bytes([flags]), view[body + 1 : stop], b"\0" * (length % 2)]
        elif kind == b"EXIF":
            orientation = exif_orientation(data[body:stop].removeprefix(b"Exif\0\0"))
        if kind in FRAMES and framed:
            several = True
        elif kind in (*FRAMES, b"ALPH", b"ANIM") and not framed:
            chunks += [view[start:stop], b"\0" * (length % 2)]
            framed, plain = kind in FRAMES, plain and kind == b"VP8 "
    else:
        raise too_many_parts()
    if size is None or not framed:
        raise truncated()
    size_bytes = struct.pack("<I", 4 + sum(map(len, chunks)))
    return Source(
        b"".join([b"RIFF", size_bytes, b"WEBP", *chunks]),
        "WEBP",
        *size,
        orientation,
        several=several,
        untrusted_cost=not plain,
    )


def _size(kind: bytes, head: bytes) -> tuple[int, int]:
    """(width, height) from the first HEADER_BYTES of the first chunk."""
    if len(head) == HEADER_BYTES and kind == b"VP8X":
        return int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1
    if len(head) == HEADER_BYTES and kind == b"VP8 " and head[3:6] == b"\x9d\x01\x2a":
        return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF
    if len(head) >= 5 and kind == b"VP8L" and head[0] == 0x2F:
        bits = int.from_bytes(head[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    raise broken("its header is not that of a WebP")
