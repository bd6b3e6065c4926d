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


def screen(data: bytes, limits: Limits) -> Source:
    """Keeps the header, the picture (of an animation the first one) and its alpha. A few hundred bytes of
    lossless data can claim a gigabyte of tables, whatever the picture's size: only plain lossy WebP is not
    `untrusted_cost`."""
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise truncated()
    chunks: list[bytes] = []
    size: tuple[int, int] | None = None
    frame: bytes | None = None
    orientation, pos = 1, 12
    for _ in range(MAX_PARTS):
        if pos + 8 > end:
            break
        kind, length = struct.unpack_from("<4sI", data, pos)
        body, start, pos = pos + 8, pos, pos + 8 + length + length % 2
        if body + length > end:
            raise truncated()
        if size is None:
            size = _webp_size(kind, data[body : body + 10])
            check_size(*size, limits, webp=True)
        if kind == b"VP8X":
            flags = data[body] & 0x12  # alpha and animation; what else it announces is dropped
            chunks.append(data[start:body] + bytes([flags]) + data[body + 1 : pos])
        elif kind == b"EXIF":
            orientation = exif_orientation(data[body : body + length].removeprefix(b"Exif\0\0"))
        elif kind == b"ANMF" and frame:
            return _rebuilt(chunks, size, orientation, several=True)
        elif kind in (b"VP8 ", b"VP8L", b"ANMF", b"ALPH", b"ANIM") and not frame:
            chunks.append(data[start:pos])
            frame = kind if kind in (b"VP8 ", b"VP8L", b"ANMF") else None
    else:
        raise too_many_parts()
    if size is None or frame is None:
        raise truncated()
    return _rebuilt(chunks, size, orientation, several=False)


def _webp_size(kind: bytes, head: bytes) -> tuple[int, int]:
    """From the first ten bytes of the first chunk."""
    if len(head) == 10 and kind == b"VP8X":
        return int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1
    if len(head) == 10 and kind == b"VP8 " and head[3:6] == b"\x9d\x01\x2a":
        return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF
    if len(head) >= 5 and kind == b"VP8L" and head[0] == 0x2F:
        bits = int.from_bytes(head[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    raise broken("its header is not that of a WebP")


def _rebuilt(chunks: list[bytes], size: tuple[int, int], orientation: int, *, several: bool) -> Source:
    body = b"WEBP" + b"".join(chunk + b"\0" * (len(chunk) % 2) for chunk in chunks)
    untrusted_cost = any(chunk[:4] not in (b"VP8X", b"VP8 ") for chunk in chunks)
    return Source(
        b"RIFF" + struct.pack("<I", len(body)) + body,
        "WEBP",
        *size,
        orientation,
        several=several,
        untrusted_cost=untrusted_cost,
    )
