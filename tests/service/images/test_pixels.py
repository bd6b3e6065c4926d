"""The pixels are those a person sees: upright, on white, whatever the file calls its colours; and smaller
where less is needed."""

from __future__ import annotations

import json
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from service.images import Limits, decode, pixels
from service.images.formats import screen
from tests.service.images.files import chunk, exif, file, png, segment, with_exif

LIMITS = Limits()


def rgb(data: bytes) -> list[list[int]]:
    """The first row of the picture."""
    return decode(data, LIMITS).rgb[0].tolist()


@pytest.fixture(scope="module")
def big(photo: np.ndarray) -> np.ndarray:
    """(800, 600, 3): photos side by side at their own resolution, so that it has fine detail."""
    return np.tile(photo, (3, 2, 1))[:800, :600]


@pytest.fixture(scope="module")
def files(big: np.ndarray) -> dict[str, bytes]:
    return {
        fmt: file(big, fmt, **how)
        for fmt, how in (("JPEG", {"quality": 95}), ("PNG", {"compress_level": 1}), ("WEBP", {"method": 0}))
    }


# Each corner of a 2 x 3 picture, and where EXIF's eight orientations put it.
CORNERS = np.array(
    [[[255, 0, 0], [0, 255, 0]], [[9, 9, 9], [9, 9, 9]], [[0, 0, 255], [255, 255, 0]]], np.uint8
)
SEEN = {1: "rg by", 2: "gr yb", 3: "yb gr", 4: "by rg", 5: "rb gy", 6: "br yg", 7: "yg br", 8: "gy rb"}
NAMES = {"r": (255, 0, 0), "g": (0, 255, 0), "b": (0, 0, 255), "y": (255, 255, 0)}


@pytest.mark.parametrize("order", ["II", "MM"])
@pytest.mark.parametrize("orientation", SEEN)
@pytest.mark.parametrize(
    ("fmt", "how", "off"),
    [("PNG", {}, 0), ("WEBP", {"lossless": True}, 0), ("JPEG", {"quality": 100, "subsampling": 0}, 12)],
)
def test_all_eight_orientations_come_out_upright(
    orientation: int, order: str, fmt: str, how: dict[str, object], off: int
) -> None:
    enlarged = CORNERS.repeat(8, 0).repeat(8, 1)
    decoded = decode(with_exif(file(enlarged, fmt, **how), exif(orientation, order)), LIMITS)
    assert (decoded.width, decoded.height) == ((24, 16) if orientation >= 5 else (16, 24))
    assert decoded.rgb.shape == (decoded.height, decoded.width, 3)
    corners = decoded.rgb[[0, 0, -1, -1], [0, -1, 0, -1]]
    wanted = np.array([NAMES[name] for name in SEEN[orientation].replace(" ", "")])
    assert np.abs(corners.astype(int) - wanted).max() <= off


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_large_picture_converted_in_bands_is_the_same(
    orientation: int, big: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = with_exif(file(big, "PNG", compress_level=1), exif(orientation))
    whole = decode(data, LIMITS).rgb, decode(data, LIMITS, 150).rgb
    monkeypatch.setattr(pixels, "BAND_PIXELS", 600 * 37)
    in_bands = decode(data, LIMITS).rgb, decode(data, LIMITS, 150).rgb
    assert np.array_equal(in_bands[0], whole[0])
    assert np.array_equal(in_bands[1], whole[1])
    assert whole[1].shape == ((150, 200, 3) if orientation >= 5 else (200, 150, 3))
    assert all(array.flags.c_contiguous for array in (*in_bands, *whole))


def test_grey_is_grey_at_every_depth() -> None:
    assert rgb(png(4, 1, 1, 0, b"\0\x50")) == [[0] * 3, [255] * 3, [0] * 3, [255] * 3]
    assert rgb(png(4, 1, 2, 0, b"\0\x1b")) == [[0] * 3, [85] * 3, [170] * 3, [255] * 3]
    assert rgb(png(2, 1, 8, 0, b"\0\x07\xf0")) == [[7] * 3, [240] * 3]
    assert rgb(png(3, 1, 16, 0, b"\0" + struct.pack(">3H", 0, 32_000, 65_535))) == [
        [0] * 3,
        [125] * 3,
        [255] * 3,
    ]
    assert rgb(file(np.full((8, 8), 77, np.uint8), "JPEG")) == [[77] * 3] * 8


def test_sixteen_bit_colours_lose_their_lower_byte() -> None:
    assert rgb(png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 0x0102, 0x80FF, 0xFF00))) == [[1, 128, 255]]
    assert rgb(png(1, 1, 16, 6, b"\0" + struct.pack(">4H", 0x0102, 0x80FF, 0xFF00, 0xFFFF))) == [
        [1, 128, 255]
    ]


def test_transparency_is_seen_on_white() -> None:
    assert rgb(png(3, 1, 8, 6, b"\0" + bytes([200, 0, 0, 255, 200, 0, 0, 0, 200, 0, 0, 51]))) == [
        [200, 0, 0],
        [255] * 3,
        [244, 204, 204],
    ]
    assert rgb(png(2, 1, 8, 4, b"\0" + bytes([0, 255, 0, 0]))) == [[0] * 3, [255] * 3]
    assert rgb(png(2, 1, 16, 4, b"\0" + struct.pack(">4H", 1000, 65_535, 1000, 0))) == [[3] * 3, [255] * 3]
    assert rgb(file(np.array([[[200, 0, 0, 255], [200, 0, 0, 0]]], np.uint8), "WEBP", lossless=True)) == [
        [200, 0, 0],
        [255] * 3,
    ]


def test_a_palette_is_its_colours_and_its_transparent_entries_white() -> None:
    palette = chunk(b"PLTE", bytes([200, 0, 0, 0, 200, 0, 0, 0, 200, 9, 9, 9]))
    assert rgb(png(4, 1, 2, 3, b"\0\x1b", palette)) == [[200, 0, 0], [0, 200, 0], [0, 0, 200], [9, 9, 9]]
    seen = rgb(png(4, 1, 2, 3, b"\0\x1b", palette + chunk(b"tRNS", bytes([0, 51]))))
    assert seen == [[255] * 3, [204, 244, 204], [0, 0, 200], [9, 9, 9]]


@pytest.mark.parametrize(
    ("depth", "colour", "row", "key", "seen"),
    [
        (1, 0, b"\x50", (1,), [[0] * 3, [255] * 3]),
        (1, 0, b"\x50", (0,), [[255] * 3, [255] * 3]),
        (2, 0, b"\x1b", (1,), [[0] * 3, [255] * 3]),
        (8, 0, b"\x07\x08", (8,), [[7] * 3, [255] * 3]),
        (16, 0, struct.pack(">2H", 1000, 1001), (1001,), [[3] * 3, [255] * 3]),
        (8, 2, b"\1\2\3\1\2\4", (1, 2, 4), [[1, 2, 3], [255] * 3]),
        (16, 2, struct.pack(">6H", 256, 512, 768, 256, 512, 1024), (256, 512, 1024), [[1, 2, 3], [255] * 3]),
    ],
)
def test_the_one_transparent_colour_of_a_png_is_white(
    depth: int, colour: int, row: bytes, key: tuple[int, ...], seen: list[list[int]]
) -> None:
    marked = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
    assert rgb(png(2, 1, depth, colour, b"\0" + row, marked)) == seen


def test_cmyk_is_printed_on_white_with_or_without_adobes_marker() -> None:
    ink = Image.merge(
        "CMYK", [Image.new("L", (16, 16), level) for level in (0, 255, 255, 0)]
    )  # full magenta and yellow: red
    data = file(ink, "JPEG", quality=95)
    assert np.abs(decode(data, LIMITS).rgb.astype(int) - [255, 0, 0]).max() <= 4
    assert b"Adobe" in screen(data, LIMITS).data


def test_adobes_marker_decides_whether_three_components_are_rgb() -> None:
    plain = file(np.full((16, 16, 3), (200, 30, 90), np.uint8), "JPEG", quality=100, keep_rgb=True)
    bare = plain.replace(segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"), b"")
    marked = bare[:2] + segment(0xEE, b"Adobe\0\x64\0\0\0\0\0") + bare[2:]
    assert np.abs(decode(marked, LIMITS).rgb.astype(int) - [200, 30, 90]).max() <= 2


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("reduce_to", [1, 36, 75, 76, 160, 299, 301, 600, 9999])
def test_a_reduced_picture_is_never_smaller_than_needed_nor_twice_as_large(
    fmt: str, reduce_to: int, files: dict[str, bytes]
) -> None:
    decoded = decode(files[fmt], LIMITS, reduce_to)
    shorter = min(decoded.rgb.shape[:2])
    assert shorter == 600 or reduce_to <= shorter < max(2 * reduce_to, 2)
    assert (decoded.width, decoded.height) == (600, 800)
    assert max(decoded.rgb.shape[:2]) == -(-800 // round(600 / shorter))


@pytest.mark.parametrize("fmt", ["JPEG", "PNG"])
def test_a_reduced_picture_shows_the_same(fmt: str, files: dict[str, bytes]) -> None:
    """Against the full picture averaged over the same squares: JPEG's own reduction differs by rounding and
    by its colour planes."""
    full, reduced = decode(files[fmt], LIMITS).rgb, decode(files[fmt], LIMITS, 150).rgb
    wanted = full.reshape(200, 4, 150, 4, 3).mean((1, 3))
    off = np.abs(wanted - reduced)
    assert off.mean() < {"JPEG": 1.5, "PNG": 0.5}[fmt]
    assert np.percentile(off, 99) < {"JPEG": 10, "PNG": 0.6}[fmt]


def test_a_large_progressive_jpeg_comes_at_half_its_size(
    photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = file(photo, "JPEG", progressive=True)
    assert decode(data, LIMITS).rgb.shape == (300, 451, 3)
    monkeypatch.setattr(pixels, "MAX_FULL_PROGRESSIVE_PIXELS", 300 * 451 - 1)
    halved = decode(data, LIMITS)
    assert halved.rgb.shape == (150, 226, 3)
    assert (halved.width, halved.height) == (451, 300)
    assert decode(file(photo, "JPEG"), LIMITS).rgb.shape == (300, 451, 3)


MEASURE = """
import io, json, resource, sys, time
import numpy as np
from PIL import Image
from service import images
from service.images import Limits
from service.images.formats import BY_NAME, screen
from service.images.pixels import read_pixels
def decode(data):  # here, where it can be measured, also what has a process of its own by its format
    source = screen(data, Limits())
    return (images.decode_source(source) if source.orientation else read_pixels(source)[1]).width
side, fmt, mode, how = json.loads(sys.argv[1])
from tests.service.images.files import file
data = file(Image.linear_gradient("L").resize((side, side)).convert(mode), fmt, **how)
row = next(row for row in BY_NAME.values() if row.plugin == fmt)
row.prepare()
decode(file(Image.new("RGB", (64, 64)), fmt))
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
open("/proc/self/clear_refs", "w").write("5")
before, began = peak(), time.process_time()
width = decode(data)
print(json.dumps([(peak() - before) / side**2, time.process_time() - began, width]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("side", "fmt", "mode", "how", "most"),
    [
        (4472, "JPEG", "RGB", {"subsampling": 0}, 8),
        (4472, "JPEG", "RGB", {"subsampling": 2, "progressive": True}, 8),
        (3464, "JPEG", "RGB", {"subsampling": 2, "progressive": True}, 8),
        (3464, "JPEG", "RGB", {"subsampling": 0, "progressive": True}, 8),
        (4472, "PNG", "RGBA", {"compress_level": 1}, 8),
        (4472, "WEBP", "RGB", {"method": 0}, 16.5),
        (4096, "AVIF", "RGB", {"speed": 10}, 14),
        (4096, "TIFF", "RGB", {"compression": "tiff_lzw"}, 12),
        (3072, "BMP", "RGB", {}, 12),
    ],
)
def test_the_largest_pictures_decode_within_their_memory_and_time(
    side: int, fmt: str, mode: str, how: dict[str, object], most: float
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps([side, fmt, mode, how])],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    bytes_per_pixel, seconds, width = json.loads(done.stdout)
    assert width == side
    assert bytes_per_pixel <= most
    assert seconds <= 4  # promised: 2 on a core of one's own
