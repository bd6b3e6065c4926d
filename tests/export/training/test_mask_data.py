"""Pictures with masks: what is read, and what is left out with which words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.pictures import DataError
from export.training.mask_data import IGNORED, LONGEST_SCORED, read_masks, split
from tests.export.training.mask_folder import write


def test_names_ids_and_pixels_that_are_not_judged_are_read(tmp_path: Path) -> None:
    write(tmp_path, 4, classes=("dark", "red", "green"))
    Image.fromarray(np.full((40, 60), IGNORED, np.uint8)).save(tmp_path / "masks" / "p3.png")
    found = read_masks(tmp_path)
    assert found.classes == ("dark", "red", "green")
    assert [p.name for p in found.pictures] == ["p0.png", "p1.png", "p2.png"]
    assert found.skipped == ("p3.png: its mask says nothing: every pixel is 255",)
    assert found.pictures[0].mask.shape == (40, 60)


def test_without_names_classes_are_numbered_up_to_the_largest_id(tmp_path: Path) -> None:
    write(tmp_path, 3)
    assert read_masks(tmp_path).classes == ("class_0", "class_1", "class_2")


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (None, "there is no masks/p0.png"),
        (np.zeros((40, 61), np.uint8), "its mask is 61 x 40 pixels, the upright picture 60 x 40"),
        (
            np.full((40, 60), 7, np.uint8),
            "its mask holds the id 7; there are 3 classes, from 0 (255 = ignore)",
        ),
        (np.zeros((40, 60, 3), np.uint8), "its mask has colours"),
        (b"no png", "its mask is no PNG that can be read"),
    ],
)
def test_a_mask_that_cannot_be_used_is_said_in_one_line(
    tmp_path: Path, mask: np.ndarray | bytes | None, said: str
) -> None:
    write(tmp_path, 3, classes=("dark", "red", "green"))
    path = tmp_path / "masks" / "p0.png"
    path.unlink()
    if isinstance(mask, bytes):
        path.write_bytes(mask)
    elif mask is not None:
        Image.fromarray(mask).save(path)
    found = read_masks(tmp_path)
    assert len(found) == 2
    (line,) = found.skipped
    assert line.startswith("p0.png: ")
    assert said in line


def test_a_palette_png_holds_ids_whatever_its_colours(tmp_path: Path) -> None:
    write(tmp_path, 3)
    path = tmp_path / "masks" / "p0.png"
    with Image.open(path) as grey:
        coloured = Image.fromarray(np.asarray(grey))
    coloured.putpalette(bytes(range(256)) * 3)
    coloured.save(path)
    before = read_masks(tmp_path).pictures[1].mask
    assert read_masks(tmp_path).pictures[0].mask.shape == before.shape


def test_the_mask_of_a_turned_photo_is_compared_with_the_upright_one(tmp_path: Path) -> None:
    write(tmp_path, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(tmp_path / "images" / "p0.png") as picture:
        picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "images" / "p0.png", exif=exif)
    assert len(read_masks(tmp_path)) == 3


def test_large_masks_are_scored_smaller_without_mixing_ids(tmp_path: Path) -> None:
    write(tmp_path, 3, size=(LONGEST_SCORED + 400, 50))
    mask = read_masks(tmp_path).pictures[0].mask
    assert max(mask.shape) == LONGEST_SCORED
    assert set(np.unique(mask)) <= {0, 1, 2}


@pytest.mark.parametrize("part", ["images", "masks"])
def test_a_folder_of_another_form_says_what_is_expected(tmp_path: Path, part: str) -> None:
    write(tmp_path, 2)
    (tmp_path / part).rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=f"no folder {part}/; expected images/ and masks/"):
        read_masks(tmp_path)


def test_a_split_is_the_same_for_the_same_seed_and_needs_pictures(tmp_path: Path) -> None:
    write(tmp_path, 10)
    pictures = read_masks(tmp_path)
    train, held_out = split(pictures, 0.2, 1)
    assert (len(train), len(held_out)) == (8, 2)
    assert not {p.name for p in train.pictures} & {p.name for p in held_out.pictures}
    assert split(pictures, 0.2, 1)[1].pictures == held_out.pictures
    with pytest.raises(DataError, match="too few"):
        split(pictures.take([0, 1]), 0.2, 1)
