"""Bytes → a `Source`: what an image file says of itself, checked against the limits before any decoder runs,
and only the bytes that make its pixels.

The walk through the container is ours, because the libraries' own are what hostile files attack: metadata
that inflates (zTXt, iCCP), EXIF directories of thousands of entries, floods of tiny chunks, thumbnails,
second pictures, trailing files. All of it is dropped here; nothing is decompressed. Refuses: unknown formats
(NotAnImage), sizes over a limit (TooLarge), and what is truncated, contradictory or without end (BadImage).
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from typing import NoReturn

from ..errors import BadImage, NotAnImage, TooLarge

MAX_JUNK = 4096  # bytes between two segments of a JPEG that are passed over
MAX_PARTS = 20_000  # segments or chunks of one file; a 16 MiB PNG in the usual 8 KiB chunks has 2,000
HEAVY_SCANS = (
    480e6  # scans x pixels of a JPEG that may decode in a thread: 12 scans (10 are usual) of 40 MP take 1.2 s
)
# bytes of coefficients a pixel; a JPEG in several scans keeps all of them: 3 with halved colour planes, 6
# with full ones
DENSE = 4
DENSE_PIXELS = 2_000_000  # a denser one may decode in a thread up to here, where it takes 20 MB

PNG = b"\x89PNG\r\n\x1a\n"
_MARKER = re.compile(rb"\xff[^\x00\xff]")
_OTHERS = {
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"%PDF": "a PDF",
    b"<svg": "an SVG",
    b"<!DO": "HTML",
    b"PK": "a zip",
}
_BRANDS = {
    b"heic": "HEIC",
    b"heix": "HEIC",
    b"mif1": "HEIC",
    b"msf1": "HEIC",
    b"avif": "AVIF",
    b"avis": "AVIF",
}


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
    """A screened file. data: the bytes a decoder needs. format: JPEG, PNG or WEBP. width, height: as stored,
    before `orientation` (EXIF, 1 to 8). depth: bits of a PNG's sample. scans: of a JPEG. several: it holds
    more pictures than the first. heavy: what decoding costs cannot be told from the header, so decode it
    where it can be stopped."""

    data: bytes
    format: str
    width: int
    height: int
    orientation: int = 1
    depth: int = 8
    scans: int = 1
    several: bool = False
    heavy: bool = False


def screen(data: bytes, limits: Limits) -> Source:
    """The file's format is decided by its first bytes. Raises NotAnImage, TooLarge (with `limit`, `value` and
    `actual`) or BadImage."""
    if not data:
        raise NotAnImage("the picture is empty; send the bytes of a JPEG, PNG or WebP file")
    _check("max_bytes", limits.max_bytes, len(data), "bytes")
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data, limits)
    if data.startswith(PNG):
        return _png(data, limits)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data, limits)
    found = next((name for magic, name in _OTHERS.items() if data.startswith(magic)), None)
    if data[4:8] == b"ftyp":
        found = _BRANDS.get(data[8:12])
    raise NotAnImage(f"this is {found or 'no image format known here'}; send a JPEG, PNG or WebP file")


def _check(limit: str, allowed: int, actual: int, unit: str) -> None:
    if actual > allowed:
        raise TooLarge(
            f"the picture has {actual:,} {unit}; at most {allowed:,} are accepted",
            limit=limit,
            value=allowed,
            actual=actual,
        )


def _check_size(width: int, height: int, limits: Limits, *, webp: bool = False) -> None:
    if not width or not height:
        raise BadImage("the picture has no pixels: its header says that its width or height is 0")
    _check("max_side", limits.max_side, max(width, height), "pixels on its longer side")
    _check("max_pixels", limits.max_pixels, width * height, "pixels")
    if webp:
        _check("max_webp_pixels", limits.max_webp_pixels, width * height, "pixels, which is much for WebP")


def _truncated() -> NoReturn:
    raise BadImage("the picture is truncated: the file ends before the picture does; send the whole file")


def _broken(what: str) -> NoReturn:
    raise BadImage(f"the picture is damaged: {what}; save it again and resend")


def _too_many_parts() -> NoReturn:
    raise BadImage(
        "the file consists of an unreasonable number of parts; save it again and resend",
        limit="max_parts",
        value=MAX_PARTS,
    )


def _jpeg(data: bytes, limits: Limits) -> Source:
    """Walks the segments up to the first scan and keeps the tables, the frame, JFIF and Adobe; from there on
    everything up to the end marker. Inside entropy-coded data 0xFF is always followed by 0, so a marker's two
    bytes are that marker."""
    kept: list[bytes | memoryview] = [b"\xff\xd8"]
    size: tuple[int, int] | None = None
    orientation, several, coefficients, pos = 1, False, 0.0, 2
    for _ in range(MAX_PARTS):
        found = _MARKER.search(data, pos, pos + MAX_JUNK)
        if not found:
            if pos + MAX_JUNK > len(data):
                _truncated()
            _broken("there is no segment where one should be")
        kind, start = data[found.end() - 1], found.end()
        if kind == 0xDA:
            break
        if kind == 0x01 or 0xD0 <= kind <= 0xD7:
            pos = start
            continue
        if kind in (0xD8, 0xD9) or kind < 0xC0:
            _broken("it has no picture data where it should begin")
        pos = start + int.from_bytes(data[start : start + 2], "big")
        if pos < start + 2:
            _broken("a segment has no length")
        if pos > len(data):
            _truncated()
        body = data[start + 2 : pos]
        if kind in (0xC0, 0xC1, 0xC2):
            if size or len(body) < 6:
                _broken("it has more than one header, or an empty one")
            size = (int.from_bytes(body[3:5], "big"), int.from_bytes(body[1:3], "big"))
            _check_size(*size, limits)
            coefficients = 2 * _samples(body[7 : 6 + 3 * body[5] : 3])
        elif 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            raise BadImage(
                "this kind of JPEG (lossless, hierarchical or arithmetic-coded) is not accepted; save it as "
                "a usual JPEG"
            )
        elif kind == 0xE1 and body.startswith(b"Exif\0") and orientation == 1:
            orientation = _orientation(body[6:])
        elif kind == 0xE2 and body.startswith(b"MPF\0"):
            several = True
        if (
            kind < 0xE0
            or (kind == 0xE0 and body.startswith(b"JFIF\0"))
            or (kind == 0xEE and body.startswith(b"Adobe"))
        ):
            kept.append(data[start - 2 : pos])
    else:
        _too_many_parts()
    if not size:
        _broken("it has no header")
    end = data.find(b"\xff\xd9", start) + 2
    if end < 2:
        _truncated()
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
    heavy = scans * pixels > HEAVY_SCANS or (scans > 1 and coefficients >= DENSE and pixels > DENSE_PIXELS)
    return Source(
        b"".join([*kept, picture]), "JPEG", *size, orientation, scans=scans, several=several, heavy=heavy
    )


def _samples(factors: bytes) -> float:
    """Samples a pixel of a JPEG, from its components' sampling factors (horizontal in the upper four
    bits)."""
    sides = [(factor >> 4, factor & 15) for factor in factors]
    most = max((h for h, _ in sides), default=1) * max((v for _, v in sides), default=1)
    return sum(h * v for h, v in sides) / max(1, most)


def _png(data: bytes, limits: Limits) -> Source:
    """Keeps the header, the palette, its transparency and the picture's data, each with its checksum
    verified."""
    view = memoryview(data)
    kept: list[bytes | memoryview] = [PNG]
    size: tuple[int, int] | None = None
    depth, orientation, several, pos = 8, 1, False, 8
    for _ in range(MAX_PARTS):
        if pos + 12 > len(data):
            _truncated()
        length, kind = struct.unpack_from(">I4s", data, pos)
        start, pos = pos, pos + 12 + length
        if pos > len(data):
            _truncated()
        if (size is None) != (kind == b"IHDR"):
            _broken("it does not begin with its header, or has two")
        if kind == b"IHDR":
            if length != 13:
                _broken("its header has the wrong length")
            size, depth = struct.unpack_from(">II", data, start + 8), data[start + 16]
            _check_size(*size, limits)
        elif kind == b"eXIf":
            orientation = _orientation(data[start + 8 : pos - 4])
        elif kind == b"acTL":
            several = True
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            if zlib.crc32(view[start + 4 : pos - 4]) != int.from_bytes(data[pos - 4 : pos], "big"):
                _broken("a checksum is wrong")
            kept.append(view[start:pos])
        if kind == b"IEND":
            break
    else:
        _too_many_parts()
    assert size is not None  # noqa: S101  the first chunk was the header  # nosec B101
    return Source(b"".join(kept), "PNG", *size, orientation, depth, several=several)


def _webp(data: bytes, limits: Limits) -> Source:
    """Keeps the header, the picture (of an animation the first one) and its alpha. A few hundred bytes of
    lossless data can claim a gigabyte of tables, whatever the picture's size: only plain lossy WebP is not
    `heavy`."""
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        _truncated()
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
            _truncated()
        if size is None:
            size = _webp_size(kind, data[body : body + 10])
            _check_size(*size, limits, webp=True)
        if kind == b"VP8X":
            flags = data[body] & 0x12  # alpha and animation; what else it announces is dropped
            chunks.append(data[start:body] + bytes([flags]) + data[body + 1 : pos])
        elif kind == b"EXIF":
            orientation = _orientation(data[body : body + length].removeprefix(b"Exif\0\0"))
        elif kind == b"ANMF" and frame:
            return _rebuilt(chunks, size, orientation, several=True)
        elif kind in (b"VP8 ", b"VP8L", b"ANMF", b"ALPH", b"ANIM") and not frame:
            chunks.append(data[start:pos])
            frame = kind if kind in (b"VP8 ", b"VP8L", b"ANMF") else None
    else:
        _too_many_parts()
    if size is None or frame is None:
        _truncated()
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
    _broken("its header is not that of a WebP")


def _rebuilt(chunks: list[bytes], size: tuple[int, int], orientation: int, *, several: bool) -> Source:
    body = b"WEBP" + b"".join(chunk + b"\0" * (len(chunk) % 2) for chunk in chunks)
    heavy = any(chunk[:4] not in (b"VP8X", b"VP8 ") for chunk in chunks)
    return Source(
        b"RIFF" + struct.pack("<I", len(body)) + body,
        "WEBP",
        *size,
        orientation,
        several=several,
        heavy=heavy,
    )


def _orientation(tiff: bytes) -> int:
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
