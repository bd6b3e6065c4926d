"""The table of accepted image formats, the only place that lists them: what screening, uploads, the OpenAPI
document, error messages and the check of the documents know of a format, they know from here.

Another format is one row, its screen, and its test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..errors import NotAnImage
from .screens import jpeg, png, webp
from .source import Limits, Source, check_limit

HEAD_BYTES = 32  # of a file, at most, that tell its format


@dataclass(frozen=True)
class ImageFormat:
    """name: in responses. title: in sentences. media_type: as registered. matches: whether a file's first
    HEAD_BYTES are of this format. screen: file → Source, without decoding; raises TooLarge or BadImage.
    plugin: what Pillow calls the decoder."""

    name: str
    title: str
    media_type: str
    matches: Callable[[bytes], bool]
    screen: Callable[[bytes, Limits], Source]
    plugin: str


IMAGE_FORMATS = (
    ImageFormat(
        name="JPEG",
        title="JPEG",
        media_type="image/jpeg",
        matches=lambda head: head.startswith(b"\xff\xd8\xff"),
        screen=jpeg.screen,
        plugin="JPEG",
    ),
    ImageFormat(
        name="PNG",
        title="PNG",
        media_type="image/png",
        matches=lambda head: head.startswith(png.MAGIC),
        screen=png.screen,
        plugin="PNG",
    ),
    ImageFormat(
        name="WEBP",
        title="WebP",
        media_type="image/webp",
        matches=lambda head: head.startswith(b"RIFF") and head[8:12] == b"WEBP",
        screen=webp.screen,
        plugin="WEBP",
    ),
)
BY_NAME = {row.name: row for row in IMAGE_FORMATS}
FORMAT_NAMES = tuple(BY_NAME)
MEDIA_TYPES = tuple(row.media_type for row in IMAGE_FORMATS)
# what people send besides, so that the refusal can call it by its name
_STRANGERS = {
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


def accepted(conjunction: str = "or") -> str:
    """The formats' titles as a part of a sentence: "JPEG, PNG or WebP"."""
    *titles, last = (row.title for row in IMAGE_FORMATS)
    return f"{', '.join(titles)} {conjunction} {last}"


def recognise(data: bytes) -> ImageFormat | None:
    """The format that a file's first bytes are of."""
    head = data[:HEAD_BYTES]
    return next((row for row in IMAGE_FORMATS if row.matches(head)), None)


def screen(data: bytes, limits: Limits) -> Source:
    """The file's format is decided by its first bytes. Raises NotAnImage, TooLarge (with `limit`, `value` and
    `actual`) or BadImage."""
    if not data:
        raise NotAnImage(f"the picture is empty; send the bytes of a {accepted()} file")
    check_limit("max_bytes", limits.max_bytes, len(data), "bytes")
    if row := recognise(data):
        return replace(row.screen(data, limits), limits=limits)
    name = next((name for magic, name in _STRANGERS.items() if data.startswith(magic)), None)
    if data[4:8] == b"ftyp":
        name = _BRANDS.get(data[8:12])
    raise NotAnImage(f"this is {name or 'no image format known here'}; send a {accepted()} file")
