"""Files put together from a container's own parts, in any order, number and size: what comes out is a
`Source` or one of our errors, and of a `Source` nothing more can be dropped."""

from __future__ import annotations

import struct
import zlib

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service.errors import InvalidInput
from service.images import Limits
from service.images.formats import screen
from tests.service.images.files import PNG, exif, file, png, riff, segment
from tests.soak import examples

LIMITS = Limits(max_pixels=1_000_000)
TIFF = st.builds(exif, st.integers(0, 9), st.sampled_from(["II", "MM"])) | st.binary(max_size=30)
SIDES = st.sampled_from([0, 1, 7, 1000, 16_384, 65_535])
PLAIN_WEBP = file(Image.new("RGB", (4, 4)), "WEBP")[20:]


def check(data: bytes) -> None:
    try:
        source = screen(data, LIMITS)
    except InvalidInput:
        return
    assert source.width * source.height <= LIMITS.max_pixels
    again = screen(source.data, LIMITS)
    assert (again.data, again.width, again.height) == (source.data, source.width, source.height)
    assert (again.untrusted_cost, again.scans, again.depth) == (
        source.untrusted_cost,
        source.scans,
        source.depth,
    )


def parts(strategy: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.lists(strategy, max_size=12).map(b"".join)


@st.composite
def jpeg_parts(draw: st.DrawFn) -> bytes:
    frame = draw(
        st.builds(
            lambda height, width, rest: b"\x08" + struct.pack(">HH", height, width) + rest,
            SIDES,
            SIDES,
            st.sampled_from(
                [b"", b"\x01\1\x11\0", b"\x03\1\x22\0\2\x11\1\3\x11\1", b"\xff", b"\x02\1\0\0\2\0\0"]
            ),
        )
    )
    body = draw(
        st.sampled_from([b"", b"JFIF\0", b"Adobe", b"MPF\0", b"\xff\xd9", b"\xff\xda\0\2", frame])
        | st.binary(max_size=9)
        | TIFF.map(lambda tiff: b"Exif\0\0" + tiff)
    )
    whole = segment(draw(st.integers(0xC0, 0xFE) | st.sampled_from([0xC0, 0xC2, 0xDA, 0xE1, 0xFE, 1])), body)
    return draw(
        st.sampled_from(
            [
                *[whole] * 9,
                whole + b"entropy\xff\0\xff\xd1",
                whole[:-1],
                b"\xff" + whole,
                b"junk" + whole,
            ]
        )
    )


USUAL_START = b"\xff\xd8" + segment(0xC2, b"\x08\0\x08\0\x08\x01\1\x11\0") + segment(0xDA, bytes(6))


@examples(200, 5_000)
@given(parts(jpeg_parts()), st.sampled_from([b"\xff\xd8\xff", USUAL_START]), st.booleans())
def test_jpegs_of_any_segments(body: bytes, start: bytes, ended: bool) -> None:
    check(start + body.removeprefix(b"\xff" * start.endswith(b"\xff")) + b"\xff\xd9" * ended)


@st.composite
def png_parts(draw: st.DrawFn) -> bytes:
    kind = draw(
        st.sampled_from([b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IDAT", b"IEND", b"eXIf", b"acTL", b"zTXt"])
        | st.binary(min_size=4, max_size=4)
    )
    header = st.builds(
        lambda width, height, rest: struct.pack(">II", width, height) + rest,
        SIDES,
        SIDES,
        st.binary(min_size=5, max_size=5),
    )
    body = draw(TIFF | header)
    length = len(body) + draw(st.sampled_from([0, 0, 0, 0, 1, -1, 1 << 31]))
    checksum = zlib.crc32(kind + body) ^ draw(st.sampled_from([0, 0, 0, 0, 1]))
    return struct.pack(">I", max(0, length)) + kind + body + struct.pack(">I", checksum)


@examples(200, 5_000)
@given(parts(png_parts()), st.booleans())
def test_pngs_of_any_chunks(body: bytes, usual: bool) -> None:
    check((png(4, 4, 8, 0, bytes(20))[:33] if usual else PNG) + body)


@st.composite
def webp_parts(draw: st.DrawFn) -> bytes:
    kind = draw(
        st.sampled_from([b"VP8X", b"VP8 ", b"VP8L", b"ANMF", b"ANIM", b"ALPH", b"EXIF", b"ICCP", b"????"])
    )
    body = draw(
        TIFF
        | st.binary(max_size=12)
        | st.sampled_from([bytes(10), b"\x2f" + bytes(4), b"123\x9d\x01\x2a\4\0\4\0", PLAIN_WEBP])
    )
    length = max(0, len(body) + draw(st.sampled_from([0, 0, 0, 0, 1, -1, 1 << 31])))
    return kind + struct.pack("<I", length) + body + b"\0" * (len(body) % 2)


@examples(200, 5_000)
@given(parts(webp_parts()), st.sampled_from([0, 0, 0, 1, -1, -9, 1 << 20]))
def test_webps_of_any_chunks(body: bytes, off: int) -> None:
    size = max(0, len(body) + 4 + off)
    check(b"RIFF" + struct.pack("<I", size) + b"WEBP" + body)


def test_a_webp_chunk_without_length_is_no_surprise() -> None:
    plain = (b"VP8 ", PLAIN_WEBP)
    for chunks in ([(b"VP8X", b"")], [(b"VP8 ", b"")], [plain, (b"VP8X", b"")], [plain, (b"EXIF", b"")]):
        check(riff(*chunks))
