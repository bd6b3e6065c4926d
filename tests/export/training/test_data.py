"""Reading pictures: packs and class folders, as the trainer sees them."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export.training.data import DataError, read_cifar10, read_folder, read_imagenette, read_pack


def jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=95)
    return out.getvalue()


def write_pack(path: Path, labels: list[int], **arrays: Any) -> Path:
    np.savez(path, label=np.array(labels, np.uint8), classes=np.array(["cat", "dog"]), **arrays)
    return path


def jpeg_pack(path: Path, colours: list[tuple[int, int, int]], size: tuple[int, int] = (20, 10)) -> Path:
    files = [jpeg(Image.new("RGB", size, colour)) for colour in colours]
    offset = np.cumsum([0, *map(len, files)])
    return write_pack(
        path, [i % 2 for i in range(len(files))], jpeg=np.frombuffer(b"".join(files), np.uint8), offset=offset
    )


def test_a_pack_of_jpegs_becomes_squares_in_order(tmp_path: Path) -> None:
    found = read_pack(jpeg_pack(tmp_path / "p.npz", [(200, 0, 0), (0, 200, 0), (0, 0, 200)]), 8)
    assert found.images.shape == (3, 8, 8, 3)
    assert found.images.dtype == np.uint8
    assert found.images.mean((1, 2)).argmax(1).tolist() == [0, 1, 2]
    assert found.labels.tolist() == [0, 1, 0]
    assert found.classes == ("cat", "dog")


def test_a_pack_of_pixels_is_taken_as_it_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    assert np.array_equal(
        read_pack(write_pack(tmp_path / "p.npz", [0, 1, 0, 1], image=pixels), 8).images, pixels
    )


def test_what_is_no_pack_is_named(tmp_path: Path) -> None:
    (tmp_path / "p.npz").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"p\.npz is not a pack"):
        read_pack(tmp_path / "p.npz", 8)


def test_class_folders_in_alphabetical_order(class_folder: Callable[[int], Path]) -> None:
    found = read_folder(class_folder(4), 16)
    assert found.classes == ("blue", "green", "red")
    assert found.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert found.images.mean((1, 2)).argmax(1).tolist() == [2] * 4 + [1] * 4 + [0] * 4
    assert found.names[0].startswith("blue/")


def test_pictures_are_turned_upright_and_greyscale_becomes_rgb(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    sideways = Image.new("L", (40, 20), 0)
    sideways.paste(255, (0, 0, 20, 20))  # left half white; orientation 6: the left edge becomes the top
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways.save(tmp_path / "a" / "photo.jpg", exif=exif)
    Image.new("RGB", (10, 10)).save(tmp_path / "b" / "photo.png")
    upright = read_folder(tmp_path, 8).images[0]
    assert upright.shape == (8, 8, 3)
    assert upright[0].min() > 200
    assert upright[-1].max() < 50


def test_unreadable_files_are_skipped_and_listed(class_folder: Callable[[int], Path]) -> None:
    folder = class_folder(3)
    (folder / "red" / "broken.jpg").write_bytes(b"\xff\xd8not a picture")
    (folder / "red" / "notes.txt").write_text("not a picture either, and not called one, but counted")
    found = read_folder(folder, 16)
    assert len(found) == 9
    assert [line.split(":")[0] for line in found.skipped] == ["red/broken.jpg", "red/notes.txt"]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ((), "has no sub-folders"),
        (("only",), "has only one class, only"),
        (("empty", "red"), "no readable picture .* in the class folder empty"),
    ],
)
def test_folders_that_cannot_be_learned_from_are_refused_in_one_line(
    tmp_path: Path, folders: tuple[str, ...], message: str
) -> None:
    for name in folders:
        (tmp_path / name).mkdir()
    if "red" in folders:
        Image.new("RGB", (8, 8), "red").save(tmp_path / "red" / "1.png")
    with pytest.raises(DataError, match=message) as caught:
        read_folder(tmp_path, 16)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere is not a folder"):
        read_folder(tmp_path / "nowhere", 16)


def test_data_sets_say_what_files_they_want(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"imagenette_train_128\.npz .* imagenette2 folder"):
        read_imagenette(tmp_path, 16)
    with pytest.raises(DataError, match=r"cifar10_train_jpeg\.npz"):
        read_cifar10(tmp_path)


def test_cifar10_with_and_without_the_lossless_pack(tmp_path: Path) -> None:
    for part in ("train", "test"):
        jpeg_pack(tmp_path / f"cifar10_{part}_jpeg.npz", [(9, 9, 9)] * 4, (32, 32))
    train, tests = read_cifar10(tmp_path)
    assert (len(train), list(tests)) == (4, ["jpeg"])
    write_pack(tmp_path / "cifar10_lossless_test1k.npz", [0, 1], image=np.zeros((2, 32, 32, 3), np.uint8))
    assert list(read_cifar10(tmp_path)[1]) == ["jpeg", "lossless"]


def test_an_imagenette_folder_is_read_by_its_wordnet_ids(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for i, wnid in enumerate(("n01440764", "n03445777")):
            folder = tmp_path / "imagenette2-160" / part / wnid
            folder.mkdir(parents=True)
            for k in range(3):
                Image.new("RGB", (20, 20), (0, 100 * i, 50 * k)).save(folder / f"{k}.png")
    train, val = read_imagenette(tmp_path, 16)
    assert train.classes == val.classes == ("tench", "golf ball")
    assert train.labels.tolist() != sorted(
        train.labels.tolist()
    )  # shuffled, so that its tail holds every class


def test_the_measured_packs_are_as_described(data_folder: Path) -> None:
    found = read_pack(data_folder / "imagenette_val_128.npz", 128)
    assert len(found) == 3289
    assert found.classes[8] == "golf ball"
