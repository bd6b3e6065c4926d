"""Whatever bytes come, what comes out is a picture or one of our errors."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service.errors import BadImage, Overloaded, PacaError
from service.images import Decoded, Limits, decode, reader
from service.images.formats import BY_NAME
from tests.service.images.files import exif, file, with_exif
from tests.soak import examples

LIMITS = Limits(max_pixels=2_000_000)
SMALL = np.asarray(Image.linear_gradient("L").resize((40, 24)).convert("RGB"))
SEEDS = [
    with_exif(file(SMALL, "JPEG"), exif(6)),
    file(SMALL, "JPEG", progressive=True, subsampling=0),
    file(Image.fromarray(SMALL).convert("CMYK"), "JPEG"),
    file(SMALL, "PNG"),
    with_exif(file(Image.fromarray(SMALL).quantize(7), "PNG", transparency=3), exif(3, "MM")),
    file(SMALL[..., 0].astype(np.uint16) * 257, "PNG"),
    file(SMALL, "WEBP"),
    with_exif(file(SMALL, "WEBP"), exif(8)),
]
UNTRUSTED = [
    file(SMALL, "WEBP", lossless=True),
    file(np.dstack([SMALL, SMALL[..., 0]]), "WEBP"),
    file(Image.fromarray(SMALL), "WEBP", save_all=True, append_images=[Image.new("RGB", (40, 24))]),
]

for name in ("AVIF", "BMP", "TIFF", "HEIC"):
    BY_NAME[name].prepare()
WITH_ALPHA = np.dstack([SMALL, SMALL[..., 0]])
BY_DECODER = [
    file(SMALL, "AVIF", exif=b"Exif\0\0" + exif(6)),
    file(WITH_ALPHA, "AVIF"),
    file(Image.fromarray(SMALL), "AVIF", save_all=True, append_images=[Image.new("RGB", (40, 24))]),
    file(SMALL, "BMP"),
    file(Image.fromarray(SMALL).quantize(7), "BMP"),
    file(SMALL, "TIFF"),
    file(SMALL, "TIFF", compression="tiff_lzw", tiffinfo={274: 6}),
    file(SMALL, "TIFF", compression="jpeg"),
    file(Image.fromarray(SMALL).convert("1"), "TIFF", compression="group4"),
    file(SMALL[..., 0].astype(np.uint16) * 257, "TIFF", compression="tiff_adobe_deflate"),
    file(Image.fromarray(SMALL), "TIFF", save_all=True, append_images=[Image.new("RGB", (40, 24))]),
    file(SMALL, "HEIF", exif=b"Exif\0\0" + exif(6)),
    file(WITH_ALPHA, "HEIF"),
]


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A seed with some bytes changed, removed, doubled, or replaced by a piece of another seed."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 40))
        match draw(st.sampled_from(["change", "insert", "remove", "repeat", "splice", "cut"])):
            case "change":
                data[start : start + length] = draw(st.binary(min_size=length, max_size=length))
            case "insert":
                data[start:start] = draw(st.binary(max_size=40))
            case "remove":
                del data[start : start + length]
            case "repeat":
                data[start:start] = data[start : start + length] * draw(st.integers(1, 20))
            case "splice":
                other = draw(st.sampled_from(seeds))
                data[start:] = other[draw(st.integers(0, len(other))) :]
            case "cut":
                del data[start:]
    return bytes(data)


def check(data: bytes, reduce_to: int | None) -> None:
    outcome: Decoded | PacaError
    try:
        outcome = decode(data, LIMITS, reduce_to)
    except PacaError as error:
        outcome = error
    if isinstance(outcome, PacaError):
        assert not isinstance(outcome, Overloaded)
        assert "Traceback" not in outcome.message
        assert "0x" not in outcome.message
        return
    assert outcome.rgb.dtype == np.uint8
    assert outcome.rgb.ndim == 3
    assert outcome.rgb.shape[2] == 3
    assert outcome.rgb.shape[0] <= outcome.height
    assert outcome.rgb.shape[1] <= outcome.width


@examples(600, 60_000)
@given(data=mutated(SEEDS), reduce_to=st.sampled_from([None, 1, 5, 1000]))
def test_mutated_files_are_pictures_or_our_errors(data: bytes, reduce_to: int | None) -> None:
    check(data, reduce_to)


@examples(120, 5_000)
@given(data=mutated(UNTRUSTED), reduce_to=st.sampled_from([None, 5]))
def test_mutated_files_for_the_other_process_are_pictures_or_our_errors(
    data: bytes, reduce_to: int | None
) -> None:
    check(data, reduce_to)


@examples(200, 20_000)
@given(data=mutated(BY_DECODER), reduce_to=st.sampled_from([None, 5]))
def test_mutated_files_whose_header_the_decoder_reads_are_pictures_or_our_errors(
    data: bytes, reduce_to: int | None
) -> None:
    check(data, reduce_to)


@examples(300, 30_000)
@given(
    data=st.binary(max_size=200),
    magic=st.sampled_from(
        [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\xc8\0\0\0WEBPVP8 ", b"RIFF\xc8\0\0\0WEBPVP8X"]
    ),
)
def test_arbitrary_bytes_are_our_errors(data: bytes, magic: bytes) -> None:
    with pytest.raises(PacaError):
        decode(magic + data, LIMITS)


@pytest.mark.parametrize(
    "error",
    [
        OSError("secret"),
        SyntaxError(),
        MemoryError(),
        RecursionError(),
        AttributeError("im"),
        ZeroDivisionError(),
    ],
)
def test_whatever_a_decoder_raises_is_a_bad_image_that_says_nothing_of_the_inside(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> np.ndarray:
        raise error

    monkeypatch.setattr(reader, "read_pixels", broken)
    with pytest.raises(BadImage) as caught:
        decode(SEEDS[0], LIMITS)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_picture_comes_with_its_own_size_and_format() -> None:
    decoded = decode(SEEDS[0], LIMITS, 12)
    assert isinstance(decoded, Decoded)
    assert (decoded.width, decoded.height, decoded.format, decoded.warnings) == (24, 40, "JPEG", ())
    assert decoded.rgb.shape == (20, 12, 3)


def test_pictures_of_untrusted_cost_come_out_of_the_other_process() -> None:
    decoded = decode(UNTRUSTED[0], LIMITS)
    with Image.open(io.BytesIO(UNTRUSTED[0])) as image:
        assert np.array_equal(decoded.rgb, np.asarray(image.convert("RGB")))
