"""Image files made in code: good ones, odd ones, and the ones that hurt."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

PNG = b"\x89PNG\r\n\x1a\n"


def file(picture: np.ndarray | Image.Image, fmt: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(buffer, fmt, **how)
    return buffer.getvalue()


def exif(orientation: int, order: str = "II", kind: int = 3, count: int = 1) -> bytes:
    """A TIFF structure with nothing but an orientation."""
    o, magic = {"II": ("<", b"II*\0"), "MM": (">", b"MM\0*")}[order]
    value = struct.pack(o + "HH", orientation, 0) if kind == 3 else struct.pack(o + "I", orientation)
    return magic + struct.pack(o + "IHHHI", 8, 1, 0x0112, kind, count) + value + b"\0\0\0\0"


def segment(kind: int, body: bytes) -> bytes:
    return bytes([0xFF, kind]) + struct.pack(">H", len(body) + 2) + body


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, before: bytes = b"") -> bytes:
    """colour: 0 grey, 2 RGB, 3 palette, 4 grey + alpha, 6 RGBA. rows: each with its filter byte. before:
    chunks in front of the data."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return PNG + header + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"WEBP" + b"".join(
        kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def with_exif(plain: bytes, tiff: bytes) -> bytes:
    """The same file with an EXIF block."""
    if plain.startswith(b"\xff\xd8"):
        return plain[:2] + segment(0xE1, b"Exif\0\0" + tiff) + plain[2:]
    if plain.startswith(PNG):
        return plain[:33] + chunk(b"eXIf", tiff) + plain[33:]
    with Image.open(io.BytesIO(plain)) as image:
        size = b"".join((side - 1).to_bytes(3, "little") for side in image.size)
    return riff((b"VP8X", b"\x08\0\0\0" + size), (plain[12:16], plain[20:]), (b"EXIF", tiff))


class _Bits:
    def __init__(self) -> None:
        self.bits: list[int] = []

    def put(self, value: int, count: int) -> None:
        self.bits += [value >> i & 1 for i in range(count)]

    def only(self) -> None:
        """A prefix code with one symbol, 0: it takes 4 bits here and 1 KB of tables in a decoder."""
        self.put(0b0001, 4)

    def bytes_code(self, alphabet: int) -> None:
        """A prefix code in which 0..255 have 8 bits each and the rest of the alphabet none."""
        lengths = {0: 0, 1: 1, 11: 1}  # of the code-length symbols 17, 18 and 8 at their places
        self.put(0, 1)
        self.put(12 - 4, 4)
        for place in range(12):
            self.put(lengths.get(place, 0), 3)
        self.put(0, 1 + 256)
        for start in range(256, alphabet, 138):
            self.put(1 | min(138, alphabet - start) - 11 << 1, 8)

    def done(self) -> bytes:
        return np.packbits(np.array(self.bits, np.uint8), bitorder="little").tobytes()


def lossless_webp_bomb(side: int) -> bytes:
    """A valid one-coloured picture whose every 4 x 4 pixels claim tables of their own: 5 KB each, for 4 bytes
    of file."""
    groups = min(65_536, (side // 4) ** 2)
    bits = _Bits()
    bits.put(0x2F, 8)
    bits.put(side - 1, 14)
    bits.put(side - 1, 14)
    bits.put(0, 1 + 3 + 1 + 1)  # no alpha, version 0, no transform, no colour cache
    bits.put(1, 1 + 3 + 1)  # one code group for each 4 x 4 pixels; the picture of their numbers has no cache
    bits.bytes_code(280)
    bits.bytes_code(256)
    for _ in range(3):
        bits.only()
    for number in range((side // 4) ** 2):
        group = number % groups
        for byte in (group & 255, group >> 8):
            bits.put(int(f"{byte:08b}"[::-1], 2), 8)
    bits.bits += [1, 0, 0, 0] * (5 * groups)
    data = bits.done()
    return riff((b"VP8L", data + b"\0" * 8))
