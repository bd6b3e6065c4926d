"""The table of accepted image formats, the only place that lists them: what screening, uploads, the OpenAPI
document, error messages and the check of the documents know of a format, they know from here.

Another format is one row, its screen, and its test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..errors import NotAnImage
from .screens import in_process, jpeg, png, webp
from .source import BYTES_PER_PIXEL, Limits, Source, check_limit

HEAD_BYTES = 64  # of a file, at most, that tell its format


@dataclass(frozen=True)
class ImageFormat:
    """One row.

    name: in responses. title: in sentences. media_type: as registered. matches: whether a file's first
    HEAD_BYTES are of this format. screen: file → Source, without decoding; raises TooLarge or BadImage.
    plugin: what Pillow calls the decoder. bytes_per_pixel: peak while decoding, measured; a format that needs
    more than BYTES_PER_PIXEL may have fewer pixels. several: what a file of more than one picture is told.
    remedy: what to install where `prepare`, which makes Pillow ready for the format, raises ImportError.
    """

    name: str
    title: str
    media_type: str
    matches: Callable[[bytes], bool]
    screen: Callable[[bytes, Limits], Source]
    plugin: str
    bytes_per_pixel: int = BYTES_PER_PIXEL
    several: str = "more than one picture; only the first was used"
    prepare: Callable[[], None] = lambda: None
    remedy: str = ""

    @property
    def available(self) -> bool:
        """Whether this installation can decode it."""
        try:
            self.prepare()
        except ImportError:
            return False
        return True

    def limits(self, limits: Limits) -> Limits:
        """The same limits for this format: as many pixels as fit into the memory of `max_pixels`."""
        return replace(limits, max_pixels=limits.max_pixels * BYTES_PER_PIXEL // self.bytes_per_pixel)


def _is_bmp(head: bytes) -> bool:
    """Two letters are few: the header's reserved bytes and its kind have to fit as well."""
    return head.startswith(b"BM") and head[6:10] == bytes(4) and head[14:18] in _BMP_HEADERS


_BMP_HEADERS = [length.to_bytes(4, "little") for length in (12, 16, 40, 52, 56, 64, 108, 124)]


def _brands(head: bytes) -> set[bytes]:
    """What an ISO media file (AVIF, HEIC, films) says that it is."""
    if head[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return {head[8:12], *(head[at : at + 4] for at in range(16, end, 4))}


def _prepare_avif() -> None:
    from PIL import AvifImagePlugin

    if not AvifImagePlugin.SUPPORTED:
        raise ImportError
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # more would reserve memory for each core of the machine


def _prepare_heic() -> None:
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)


AVIF_BRANDS = {b"avif", b"avis"}
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"}

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
        bytes_per_pixel=16,  # its library keeps two canvases
    ),
    ImageFormat(
        name="AVIF",
        title="AVIF",
        media_type="image/avif",
        matches=lambda head: bool(_brands(head) & AVIF_BRANDS),
        screen=in_process.screen("AVIF"),
        plugin="AVIF",
        bytes_per_pixel=10,
        prepare=_prepare_avif,
        remedy="a Pillow with AVIF, as its wheels have it",
    ),
    ImageFormat(
        name="BMP",
        title="BMP",
        media_type="image/bmp",
        matches=_is_bmp,
        screen=in_process.screen("BMP"),
        plugin="BMP",
    ),
    ImageFormat(
        name="TIFF",
        title="TIFF",
        media_type="image/tiff",
        matches=lambda head: head.startswith((b"II*\0", b"MM\0*")),
        screen=in_process.screen_tiff,
        plugin="TIFF",
        several="more than one page; only the first was used",
    ),
    ImageFormat(
        name="HEIC",
        title="HEIC",
        media_type="image/heic",
        matches=lambda head: bool(_brands(head) & HEIC_BRANDS) and not _brands(head) & AVIF_BRANDS,
        screen=in_process.screen("HEIC"),
        plugin="HEIF",
        bytes_per_pixel=10,
        several="more than one picture; only its main one was used",
        prepare=_prepare_heic,
        remedy="the extra heic (pillow-heif)",
    ),
)
BY_NAME = {row.name: row for row in IMAGE_FORMATS}
FORMAT_NAMES = tuple(BY_NAME)
MEDIA_TYPES = tuple(row.media_type for row in IMAGE_FORMATS)
# what people send besides, so that the refusal can call it by its name
_STRANGERS = {
    b"GIF8": "a GIF",
    b"II+\0": "a BigTIFF",
    b"MM\0+": "a BigTIFF",
    b"\xff\x0a": "a JPEG XL",
    b"\0\0\0\x0cJXL ": "a JPEG XL",
    b"\0\0\0\x0cjP  ": "a JPEG 2000",
    b"8BPS": "a Photoshop file",
    b"%PDF": "a PDF",
    b"<svg": "an SVG",
    b"<?xml": "an SVG or other XML",
    b"<!DO": "HTML",
    b"PK": "a zip",
}


def accepted(conjunction: str = "or") -> str:
    """The titles of the formats that this installation decodes, for a sentence: "JPEG, PNG or WebP"."""
    *titles, last = (row.title for row in IMAGE_FORMATS if row.available)
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
    row = recognise(data)
    if row is None:
        name = next((name for magic, name in _STRANGERS.items() if data.startswith(magic)), None)
        if data[4:8] == b"ftyp":
            name = "a film, or a picture in a coding not known here"
        raise NotAnImage(f"this is {name or 'no image format known here'}; send a {accepted()} file")
    if not row.available:
        raise NotAnImage(
            f"this is {row.title}, for which the server needs {row.remedy}; install it there, or send a "
            f"{accepted()} file"
        )
    limits = row.limits(limits)
    return replace(row.screen(data, limits), limits=limits)
