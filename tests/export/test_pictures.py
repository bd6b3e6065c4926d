"""Labelled pictures, read as the server reads them."""

from __future__ import annotations

import io
import os
import struct
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.calibration import read_calibration
from export.pictures import DataError, class_files, fingerprints, prepare, preprocessing
from export.training import served
from export.training.data import read_folder, read_pack
from service import images
from service.artifact import Preprocessing
from service.errors import Overloaded

SQUARE = preprocessing(32)
CUT = Preprocessing((24, 24), "shortest", 0.875, "bicubic", (0.5,) * 3, (0.5,) * 3)


def encoded(image: Image.Image, fmt: str, **how: object) -> bytes:
    out = io.BytesIO()
    image.save(out, fmt, **how)
    return out.getvalue()


def png_16_bit_rgb(rgb: np.ndarray) -> bytes:
    """Written by hand: Pillow cannot."""
    height, width, _ = rgb.shape
    rows = b"".join(b"\0" + row.tobytes() for row in rgb.astype(">u2") * 257)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def _grey(photo: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(photo).convert("L"))


def _cut_out(photo: np.ndarray) -> Image.Image:
    """A disc; transparent around it, with black under the transparency."""
    height, width, _ = photo.shape
    y, x = np.mgrid[:height, :width]
    alpha = (((y / height - 0.5) ** 2 + (x / width - 0.5) ** 2) < 0.2).astype(np.uint8) * 255
    return Image.fromarray(np.dstack([photo * (alpha[..., None] > 0), alpha]))


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


KINDS: dict[str, Callable[[np.ndarray], bytes]] = {
    "jpeg": lambda p: encoded(Image.fromarray(p), "JPEG", quality=90),
    "png, 16-bit grey": lambda p: encoded(Image.fromarray(_grey(p).astype(np.uint16) * 257), "PNG"),
    "png, 16-bit colour": png_16_bit_rgb,
    "png, transparent": lambda p: encoded(_cut_out(p), "PNG"),
    "webp, transparent": lambda p: encoded(_cut_out(p), "WEBP", lossless=True, exact=True),
    "png, grey and alpha": lambda p: encoded(_cut_out(p).convert("LA"), "PNG"),
    "jpeg, CMYK": lambda p: encoded(Image.fromarray(p).convert("CMYK"), "JPEG"),
    "png, palette": lambda p: encoded(Image.fromarray(p).quantize(64), "PNG"),
    "png, palette with a transparent colour": lambda p: encoded(
        Image.fromarray(p).quantize(63), "PNG", transparency=3
    ),
    "jpeg, turned by EXIF": lambda p: encoded(Image.fromarray(p), "JPEG", exif=_exif(6)),
    "jpeg, mirrored by EXIF": lambda p: encoded(Image.fromarray(p), "JPEG", exif=_exif(5)),
    "jpeg, progressive": lambda p: encoded(Image.fromarray(p), "JPEG", progressive=True),
}


@pytest.mark.parametrize("how", [SQUARE, CUT], ids=["stretched", "cut"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_evaluation_and_calibration_see_bit_for_bit_what_the_server_sees(
    kind: str, how: Preprocessing, photo: np.ndarray, tmp_path: Path
) -> None:
    data = KINDS[kind](photo)
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "1").write_bytes(data)
    np.savez(
        tmp_path / "pack.npz",
        jpeg=np.frombuffer(data, np.uint8),
        offset=np.array([0, len(data)]),
        label=np.array([0]),
        classes=np.array(["a", "b"]),
    )
    seen = images.read(data, images.Limits(), how).pixels
    assert np.array_equal(read_folder(tmp_path / "photos", how).images, [seen, seen])
    assert np.array_equal(read_pack(tmp_path / "pack.npz", how).images, [seen])
    assert np.array_equal(served.read(tmp_path / "photos", ("a", "b"), how).images, [seen, seen])
    assert np.array_equal(read_calibration(tmp_path / "photos", how, ("a", "b")).calibrating, [seen])
    assert np.array_equal(read_calibration(tmp_path / "pack.npz", how, ("a", "b")).calibrating, [seen])


def test_transparent_places_are_white_and_16_bits_keep_their_shades(photo: np.ndarray) -> None:
    cut_out = prepare(KINDS["png, transparent"](photo), SQUARE)
    grey = prepare(KINDS["png, 16-bit grey"](photo), SQUARE)
    assert isinstance(cut_out, np.ndarray)
    assert isinstance(grey, np.ndarray)
    assert cut_out[0, 0].tolist() == [255, 255, 255]
    assert (grey == 255).mean() < 0.05


def test_a_picture_whose_decoder_is_busy_waits_and_is_not_lost(
    jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    read = images.read

    def busy_at_first(*arguments: object) -> object:
        calls.append(1)
        if len(calls) < 3:
            raise Overloaded("too many costly pictures", retry_after=0.01)
        return read(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(images, "read", busy_at_first)
    assert isinstance(prepare(jpeg, SQUARE), np.ndarray)
    assert len(calls) == 3


def test_copies_have_one_fingerprint_in_any_lossless_format(photo: np.ndarray) -> None:
    image = Image.fromarray(photo)
    files = (encoded(image, "PNG"), encoded(image, "WEBP", lossless=True), encoded(image, "JPEG"))
    marks = fingerprints(np.stack([prepare(data, SQUARE) for data in files]))
    assert marks.dtype == np.uint64
    assert marks[0] == marks[1] != marks[2]


def put(root: Path, data: bytes, *files: str) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def test_names_are_compared_in_one_form_of_unicode(tmp_path: Path, jpeg: bytes) -> None:
    composed, apart = (unicodedata.normalize(form, "Äpfel") for form in ("NFC", "NFD"))
    data = put(tmp_path / "one", jpeg, f"{apart}/1.jpg", "鯉 魚/1.jpg")
    assert class_files(data).classes == (composed, "鯉 魚")
    both = put(tmp_path / "two", jpeg, f"{apart}/1.jpg", f"{composed}/1.jpg")
    with pytest.raises(DataError, match="two class folders named Äpfel"):
        class_files(both)
    found = served.read(data, (composed, "鯉 魚"), SQUARE)
    assert found.labels.tolist() == [0, 1]


def test_classes_that_differ_in_case_alone_stay_two(tmp_path: Path, jpeg: bytes) -> None:
    data = put(tmp_path, jpeg, "A/1.jpg", "a/1.jpg")
    assert served.read(data, ("a", "A"), SQUARE).labels.tolist() == [1, 0]


def test_a_class_name_that_is_no_text_is_refused(tmp_path: Path, jpeg: bytes) -> None:
    name = os.fsdecode(b"For\xeat")
    with pytest.raises(DataError, match="no UTF-8 text"):
        class_files(put(tmp_path, jpeg, f"{name}/1.jpg", "b/1.jpg"))


def test_pictures_outside_of_class_folders_are_counted(tmp_path: Path, jpeg: bytes) -> None:
    files = class_files(put(tmp_path, jpeg, "a/1.jpg", "b/in/1.jpg", "lost.jpg", "a/.hidden.jpg"))
    assert files.names == ("a/1.jpg", "b/in/1.jpg")
    assert [line.split(":")[0] for line in files.left_out] == ["a/.hidden.jpg", "lost.jpg"]


def test_a_folder_around_the_classes_is_suggested(tmp_path: Path, jpeg: bytes) -> None:
    with pytest.raises(DataError, match=r"only one class, flowers; .* did you mean .*flowers\?"):
        class_files(put(tmp_path, jpeg, "flowers/a/1.jpg", "flowers/b/1.jpg"))
