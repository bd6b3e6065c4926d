"""BMP, TIFF, AVIF and HEIC: seen as the same picture in the usual formats is, under the same limits."""

from __future__ import annotations

import struct
import sys

import numpy as np
import pytest
from PIL import Image

from service.errors import BadImage, NotAnImage, TooLarge
from service.images import Decoded, Limits, accepted, decode, formats
from service.images.formats import BY_NAME
from tests.service.images.files import exif, file

LIMITS = Limits(decode_seconds=60)
NAMES = ("AVIF", "BMP", "TIFF", "HEIC")
# What each format may differ by from the lossless picture, in levels of 255.
LOSS = {"AVIF": 12, "BMP": 0, "TIFF": 0, "HEIC": 12}
CORNERS = np.zeros((24, 16, 3), np.uint8)
CORNERS[:8, :8], CORNERS[:8, 8:], CORNERS[16:, :8], CORNERS[16:, 8:] = (
    (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0),
)  # fmt: skip
CORNERS = CORNERS.repeat(4, 0).repeat(4, 1)
HOW: dict[str, dict[str, object]] = {
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "BMP": {},
    "TIFF": {},
    "HEIC": {"quality": 100, "chroma": 444},
}
each = pytest.mark.parametrize("name", NAMES)


def encoded(name: str, picture: np.ndarray | Image.Image, **how: object) -> bytes:
    row = BY_NAME[name]
    row.prepare()
    return file(picture, row.plugin, **(HOW[name] | how))


def first_row(data: bytes) -> list[list[int]]:
    return decode(data, LIMITS).rgb[0].tolist()


def differs(decoded: Decoded, picture: np.ndarray) -> int:
    return int(np.abs(decoded.rgb.astype(int) - picture).max())


@each
def test_pixels_size_and_format_are_those_of_the_picture(name: str) -> None:
    decoded = decode(encoded(name, CORNERS), LIMITS)
    assert (decoded.format, decoded.width, decoded.height, decoded.warnings) == (name, 64, 96, ())
    assert differs(decoded, CORNERS) <= LOSS[name]


@each
def test_reduced_pictures_keep_their_size(name: str) -> None:
    decoded = decode(encoded(name, CORNERS), LIMITS, 16)
    assert (decoded.width, decoded.height, decoded.rgb.shape) == (64, 96, (24, 16, 3))


@pytest.mark.parametrize("name", ["AVIF", "TIFF", "HEIC"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_eight_orientations_come_out_upright(name: str, orientation: int) -> None:
    stored = Image.fromarray(CORNERS)
    how = {"tiffinfo": {274: orientation}} if name == "TIFF" else {"exif": b"Exif\0\0" + exif(orientation)}
    decoded = decode(encoded(name, stored, **how), LIMITS)
    as_png = file(stored, "PNG", exif=b"Exif\0\0" + exif(orientation))
    wanted = decode(as_png, LIMITS)
    assert (decoded.width, decoded.height) == (wanted.width, wanted.height)
    assert differs(decoded, wanted.rgb) <= LOSS[name]


@pytest.mark.parametrize("name", ["AVIF", "TIFF", "HEIC"])
def test_transparency_is_seen_on_white(name: str) -> None:
    rgba = np.dstack([CORNERS, np.where(np.arange(96)[:, None] < 48, 255, 0) * np.ones((1, 64), int)])
    decoded = decode(encoded(name, rgba.astype(np.uint8)), LIMITS)
    assert np.abs(decoded.rgb[:40].astype(int) - CORNERS[:40]).max() <= LOSS[name]
    assert decoded.rgb[56:].min() >= 255 - LOSS[name]


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bit_grey_loses_its_lower_byte(order: str) -> None:
    levels = np.array([[0, 32_000, 65_535]], order + "u2")
    assert first_row(tiff(levels, order)) == [[0] * 3, [125] * 3, [255] * 3]


def tiff(samples: np.ndarray, order: str, colours: int = 1, *extra: tuple[int, int, int, int]) -> bytes:
    """An uncompressed TIFF of one strip. colours: 0 white is zero, 1 black is zero, 2 RGB. extra: entries."""
    height, width = samples.shape[:2]
    data = samples.tobytes()
    entries = sorted(
        [
            (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8 * samples.itemsize), (259, 3, 1, 1),
            (262, 3, 1, colours), (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height),
            (279, 4, 1, len(data)), *extra,
        ]
    )  # fmt: skip
    directory = struct.pack(order + "H", len(entries))
    for tag, kind, count, value in entries:
        packed = struct.pack(order + "HH", value, 0) if kind == 3 else struct.pack(order + "I", value)
        directory += struct.pack(order + "HHI", tag, kind, count) + packed
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(data))
    return head + data + directory + bytes(4)


@pytest.mark.parametrize(
    ("mode", "levels"),
    [("1", [[0] * 3, [255] * 3]), ("L", [[7] * 3, [240] * 3]), ("P", None), ("CMYK", None)],
)
def test_grey_palettes_and_inks_are_seen_as_in_png_and_jpeg(
    mode: str, levels: list[list[int]] | None
) -> None:
    if mode == "1":
        picture = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    elif mode == "L":
        picture = Image.fromarray(np.array([[7, 240]], np.uint8))
    else:
        picture = Image.fromarray(CORNERS).convert(mode)
    for name in ("TIFF",) if mode == "CMYK" else ("TIFF", "BMP"):
        decoded = decode(encoded(name, picture), LIMITS)
        assert differs(decoded, np.asarray(picture.convert("RGB"))) == 0
        assert levels is None or decoded.rgb[0].tolist() == levels


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4"])
def test_tiff_of_every_usual_compression(compression: str) -> None:
    grey = Image.fromarray(CORNERS).convert("1" if compression == "group4" else "RGB")
    decoded = decode(encoded("TIFF", grey, compression=compression), LIMITS)
    assert np.abs(decoded.rgb.astype(int) - np.asarray(grey.convert("RGB"))).mean() < 4


@pytest.mark.parametrize("samples", [np.zeros((2, 2), "<i4"), np.zeros((2, 2), "<f4")])
def test_samples_without_a_known_black_and_white_are_refused(samples: np.ndarray) -> None:
    kind = 3 if samples.dtype.kind == "f" else 2
    with pytest.raises(BadImage):
        decode(tiff(samples, "<", 1, (339, 3, 1, kind)), LIMITS)


@pytest.mark.parametrize("entry", [(0xC612, 4, 1, 1), (254, 4, 1, 1)])
def test_camera_raw_files_are_refused_by_name(entry: tuple[int, int, int, int]) -> None:
    with pytest.raises(BadImage, match="raw"):
        decode(tiff(np.zeros((2, 2), np.uint8), "<", 1, entry), LIMITS)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("TIFF", "more than one page; only the first"),
        ("AVIF", "only the first"),
        ("HEIC", "only its main one"),
    ],
)
def test_of_several_pictures_a_warning_says_which_was_taken(name: str, said: str) -> None:
    first, second = Image.new("RGB", (64, 64), (200, 0, 0)), Image.new("RGB", (64, 64), (0, 0, 200))
    decoded = decode(encoded(name, first, save_all=True, append_images=[second]), LIMITS)
    assert len(decoded.warnings) == 1
    assert said in decoded.warnings[0]
    assert decoded.rgb.reshape(-1, 3).mean(0) == pytest.approx([200, 0, 0], abs=6)


@each
@pytest.mark.parametrize(("limit", "actual"), [("max_pixels", 64 * 96), ("max_side", 96)])
def test_sizes_are_checked_before_decoding(name: str, limit: str, actual: int) -> None:
    data = encoded(name, CORNERS)
    allowed = actual - 1
    if limit == "max_pixels":
        allowed = (actual - 1) * BY_NAME[name].bytes_per_pixel // 8
    with pytest.raises(TooLarge) as caught:
        decode(data, Limits(**{limit: allowed}))
    assert caught.value.details["limit"] == limit
    assert caught.value.details["actual"] == actual


@each
def test_a_truncated_file_is_refused_wherever_it_ends(name: str) -> None:
    data = encoded(name, CORNERS)
    for end in (len(data) * part // 8 for part in range(1, 8)):
        with pytest.raises((BadImage, NotAnImage)):
            decode(data[:end], LIMITS)


@pytest.mark.skipif(sys.platform != "linux", reason="memory can be limited on Linux only")
def test_a_bmp_of_few_bytes_cannot_claim_more_memory_than_its_pixels_need() -> None:
    header = struct.pack("<IiiHHIIiiII", 40, 30_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0)
    claim = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header
    with pytest.raises(TooLarge):
        decode(claim, LIMITS)


def test_without_the_extra_a_heic_is_refused_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded("HEIC", CORNERS)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(NotAnImage, match="the extra heic"):
        formats.screen(data, LIMITS)
    assert "HEIC" not in accepted()
