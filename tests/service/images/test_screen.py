"""What is refused before any decoder runs, and what of a file never reaches one."""

from __future__ import annotations

import random
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from service.errors import BadImage, NotAnImage, TooLarge
from service.images import Limits, decode
from service.images.formats import screen
from service.images.source import MAX_PARTS
from tests.service.images.files import PNG, chunk, exif, file, png, riff, segment, with_exif

LIMITS = Limits()
NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
GOOD = {
    "JPEG": file(NOISE, "JPEG"),
    "progressive": file(NOISE, "JPEG", progressive=True),
    "PNG": file(NOISE, "PNG"),
    "WEBP": file(NOISE, "WEBP"),
    "lossless": file(NOISE, "WEBP", lossless=True),
}
kinds = pytest.mark.parametrize("kind", GOOD)


@kinds
def test_a_format_is_known_by_its_bytes(kind: str) -> None:
    source = screen(GOOD[kind], LIMITS)
    assert source.format == {"progressive": "JPEG", "lossless": "WEBP"}.get(kind, kind)
    assert (source.width, source.height, source.orientation, source.several) == (64, 48, 1, False)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"", "empty"),
        (b"hello, world", "no image format"),
        (file(NOISE, "GIF"), "a GIF"),
        (b"II+\0" + bytes(20), "a BigTIFF"),
        (b"\0\0\0\x18ftypmp42" + bytes(20), "a film"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL"),
        (b"%PDF-1.7", "a PDF"),
        (b"<svg xmlns=", "an SVG"),
        (b"<!DOCTYPE html>", "HTML"),
        (b"\xff\xd8", "no image format"),
        (b"RIFF\0\0\0\0WAVE", "no image format"),
    ],
    ids=lambda value: value if isinstance(value, str) else len(value),
)
def test_anything_else_is_no_image_and_is_called_by_its_name(data: bytes, name: str) -> None:
    with pytest.raises(NotAnImage, match=name):
        screen(data, LIMITS)


@kinds
@pytest.mark.parametrize(
    ("limit", "actual"), [("max_bytes", None), ("max_pixels", 64 * 48), ("max_side", 64)]
)
def test_sizes_are_checked_to_the_last_one(kind: str, limit: str, actual: int | None) -> None:
    actual = actual or len(GOOD[kind])
    factor = 2 if limit == "max_pixels" and kind in ("WEBP", "lossless") else 1
    screen(GOOD[kind], Limits(**{limit: factor * actual}))
    with pytest.raises(TooLarge) as caught:
        screen(GOOD[kind], Limits(**{limit: factor * actual - factor}))
    assert caught.value.details == {"limit": limit, "value": actual - 1, "actual": actual}


def test_a_format_that_needs_more_memory_a_pixel_may_have_fewer_and_the_refusal_names_the_setting() -> None:
    limits = Limits(max_pixels=64 * 48)
    screen(GOOD["PNG"], limits)
    with pytest.raises(TooLarge, match="PACA_MAX_PIXELS") as caught:
        screen(GOOD["WEBP"], limits)
    assert caught.value.details == {"limit": "max_pixels", "value": 32 * 48, "actual": 64 * 48}


@pytest.mark.parametrize(
    "claim",
    [
        PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)),
        b"\xff\xd8" + segment(0xC0, b"\x08" + struct.pack(">HH", 50_000, 50_000) + b"\x03" + bytes(9)),
        riff((b"VP8L", b"\x2f" + (12_999 | 12_999 << 14).to_bytes(4, "little") + bytes(8))),
        riff((b"VP8X", bytes(4) + b"\xff\xff\xff" * 2)),
    ],
    ids=len,
)
def test_a_huge_claim_is_refused_from_the_header_alone(claim: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(TooLarge):
        decode(claim, LIMITS)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@kinds
def test_a_truncated_file_is_refused_wherever_it_ends(kind: str) -> None:
    data = GOOD[kind]
    ends = {len(data) * tenth // 10 for tenth in range(1, 10)} | {len(data) - 1, len(data) - 2, 14, 30}
    for end in ends:
        with pytest.raises(BadImage):
            decode(data[:end], LIMITS)


@kinds
def test_bytes_after_the_picture_do_not_matter(kind: str) -> None:
    """A phone's motion photo: a film behind the picture, in which by chance there are hundreds of scan
    markers; or a zip that is also a picture."""
    film = random.Random(1).randbytes(1 << 16) + b"\xff\xda" * 500 + b"PK\3\4"
    assert screen(GOOD[kind] + film, LIMITS).data == screen(GOOD[kind], LIMITS).data


def test_a_jpegs_metadata_thumbnail_and_profile_never_reach_the_decoder() -> None:
    thumbnail = segment(0xE1, b"Exif\0\0" + exif(1) + GOOD["progressive"])
    rest = (
        segment(0xE2, b"ICC_PROFILE\0" + bytes(60_000))
        + segment(0xED, b"Photoshop")
        + segment(0xFE, b"a comment")
        + b"junk\xff\xff"
    )
    assert screen(b"\xff\xd8" + thumbnail + rest + GOOD["JPEG"][2:], LIMITS).data == GOOD["JPEG"]


def test_a_pngs_texts_and_profiles_are_dropped_without_inflating_them() -> None:
    bomb = zlib.compress(bytes(50 << 20), 9)
    before = (
        chunk(b"zTXt", b"a\0\0" + bomb)
        + chunk(b"iCCP", b"a\0\0" + bomb)
        + chunk(b"iTXt", b"a\0\1\0\0\0" + bomb)
        + chunk(b"tEXt", b"a\0b")
    )
    plain = png(1, 1, 8, 2, b"\0\1\2\3")
    assert screen(plain[:33] + before + plain[33:], LIMITS).data == plain
    assert decode(plain[:33] + before + plain[33:], LIMITS).rgb.tolist() == [[[1, 2, 3]]]


def test_a_webps_profile_and_metadata_are_dropped() -> None:
    body = GOOD["WEBP"][20:]
    header = b"\x2c\0\0\0" + b"\x3f\0\0" + b"\x2f\0\0"
    source = screen(
        riff((b"VP8X", header), (b"ICCP", bytes(999)), (b"VP8 ", body), (b"XMP ", b"<x>"), (b"oddl", b"1")),
        LIMITS,
    )
    assert source.data == riff((b"VP8X", b"\0" + header[1:]), (b"VP8 ", body))
    assert not source.untrusted_cost


@pytest.mark.parametrize(
    "flood",
    [
        GOOD["JPEG"][:2] + segment(0xFE, b"") * MAX_PARTS + GOOD["JPEG"][2:],
        GOOD["PNG"][:33] + chunk(b"IDAT", b"") * MAX_PARTS + GOOD["PNG"][33:],
        riff(
            (b"VP8X", bytes(4) + b"\x3f\0\0\x2f\0\0"),
            *[(b"none", b"")] * MAX_PARTS,
            (b"VP8 ", GOOD["WEBP"][20:]),
        ),
    ],
    ids=len,
)
def test_a_flood_of_parts_is_refused(flood: bytes) -> None:
    with pytest.raises(BadImage, match="number of parts"):
        screen(flood, LIMITS)


@pytest.mark.parametrize("kind", ["JPEG", "progressive"])
@pytest.mark.parametrize("text", [b"\xff\xd9", b"\xff\xda\0\2" * 200, b"\xff\xd8\xff"])
def test_markers_inside_a_segment_between_scans_are_not_the_pictures(kind: str, text: bytes) -> None:
    """A comment may hold any bytes: the end marker in it is not the picture's, and scan markers do not
    count."""
    data, comment = GOOD[kind], segment(0xFE, text)
    for place in (2, data.rindex(b"\xff\xc4"), data.rindex(b"\xff\xda"), len(data) - 2):
        assert screen(data[:place] + comment + data[place:], LIMITS) == screen(data, LIMITS)


def test_the_orientation_of_an_animation_stands_behind_its_frames() -> None:
    first, second = Image.new("RGB", (16, 8), (200, 0, 0)), Image.new("RGB", (16, 8), (0, 0, 200))
    tiff = exif(6)
    decoded = decode(
        file(first, "WEBP", save_all=True, append_images=[second], exif=b"Exif\0\0" + tiff), LIMITS
    )
    assert (decoded.width, decoded.height) == (8, 16)
    assert len(decoded.warnings) == 1


def test_the_scans_of_a_jpeg_are_counted_and_bounded() -> None:
    assert screen(GOOD["JPEG"], LIMITS).scans == 1
    data = GOOD["progressive"]
    assert screen(data, LIMITS).scans == 10
    scan = data[data.rindex(b"\xff\xda") : -2]
    screen(data[:-2] + scan * 90 + data[-2:], LIMITS)
    with pytest.raises(BadImage, match="101 scans") as caught:
        screen(data[:-2] + scan * 91 + data[-2:], LIMITS)
    assert caught.value.details == {"limit": "max_scans", "value": 100, "actual": 101}


def test_many_scans_of_many_pixels_have_an_untrusted_cost_and_usual_ones_have_not() -> None:
    header = b"\xff\xd8" + segment(0xC2, b"\x08" + struct.pack(">HH", 5000, 8000) + b"\x01" + bytes(3))
    for scans, untrusted in ((10, False), (12, False), (13, True)):
        assert (
            screen(header + segment(0xDA, bytes(6)) * scans + b"\xff\xd9", LIMITS).untrusted_cost is untrusted
        )


def test_only_plain_lossy_webp_has_a_cost_to_trust() -> None:
    assert not screen(GOOD["WEBP"], LIMITS).untrusted_cost
    assert screen(GOOD["lossless"], LIMITS).untrusted_cost
    assert screen(
        file(np.dstack([NOISE, NOISE[..., :1]]), "WEBP"), LIMITS
    ).untrusted_cost  # its alpha is lossless


@pytest.mark.parametrize(
    "damaged",
    [
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8\xff\xd8" + GOOD["JPEG"][2:],
        b"\xff\xd8\xff\xe0\0\0" + GOOD["JPEG"][2:],
        b"\xff\xd8\xff\xfe" + b"\0\x04ab" + bytes(5000) + GOOD["JPEG"][2:],
        GOOD["JPEG"][:2] + segment(0xC0, b"\x08\0\1\0\1\x03") + GOOD["JPEG"][2:],
        GOOD["JPEG"][:2] + segment(0xC3, b"\x08\0\1\0\1\x03") + GOOD["JPEG"][2:],
        b"\xff\xd8" + segment(0xDA, bytes(6)) + b"\xff\xd9",
        b"\xff\xd8" + segment(0xC0, b"\x08\0\0\0\1\x03") + segment(0xDA, bytes(6)) + b"\xff\xd9",
        PNG + chunk(b"IDAT", b"") + GOOD["PNG"][8:],
        GOOD["PNG"][:33] + GOOD["PNG"][8:],
        GOOD["PNG"][:29] + b"\0\0\0\0" + GOOD["PNG"][33:],
        PNG + chunk(b"IHDR", bytes(12)),
        riff((b"VP8 ", bytes(30))),
        riff((b"JUNK", b""), (b"VP8 ", GOOD["WEBP"][20:])),
        riff((b"VP8X", bytes(10)), (b"EXIF", b"")),
        riff(
            (b"VP8X", bytes(4) + b"\x0f\0\0\x0f\0\0"), (b"VP8 ", GOOD["WEBP"][20:])
        ),  # the picture is larger than it says
    ],
    ids=len,
)
def test_contradictory_files_are_bad_images(damaged: bytes) -> None:
    with pytest.raises(BadImage):
        decode(damaged, LIMITS)


def test_a_png_with_a_flipped_bit_is_refused_wherever_it_is() -> None:
    data = GOOD["PNG"]
    for place in range(16, len(data), 97):
        with pytest.raises((BadImage, TooLarge)):
            decode(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :], LIMITS)


@kinds
@pytest.mark.parametrize("order", ["II", "MM"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_read_from_every_format(kind: str, order: str, orientation: int) -> None:
    assert screen(with_exif(GOOD[kind], exif(orientation, order)), LIMITS).orientation == orientation


@kinds
@pytest.mark.parametrize(
    "tiff",
    [
        exif(0),
        exif(9),
        exif(65_535, "MM"),
        exif(6, kind=4),  # a long number
        exif(6, kind=5),  # a fraction
        exif(6, kind=2),  # text
        exif(6, count=2),
        exif(6)[:17],
        exif(6)[:9],
        b"II*\0\xff\xff\xff\xff",
        b"XX*\0" + exif(6)[4:],
        b"II*\0\x08\0\0\0\xff\xff" + bytes(100),
        b"",
    ],
    ids=len,
)
def test_a_broken_orientation_counts_as_upright(kind: str, tiff: bytes) -> None:
    assert screen(with_exif(GOOD[kind], tiff), LIMITS).orientation == 1


@pytest.mark.parametrize("fmt", ["PNG", "WEBP", "MPO"])
def test_of_several_pictures_the_first_is_used_and_a_warning_says_so(fmt: str) -> None:
    first, second = Image.new("RGB", (16, 16), (200, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 200))
    decoded = decode(file(first, fmt, save_all=True, append_images=[second]), LIMITS)
    assert decoded.warnings == (
        f"this {decoded.format} file holds more than one picture; only the first was used",
    )
    assert decoded.rgb.reshape(-1, 3).mean(0) == pytest.approx([200, 0, 0], abs=3)
    assert decode(file(first, "JPEG" if fmt == "MPO" else fmt), LIMITS).warnings == ()
