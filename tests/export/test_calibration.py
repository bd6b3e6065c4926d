"""The pictures that int8 is calibrated and judged on; that they are the server's is stated in
test_pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export import calibration
from export.calibration import read_calibration
from export.pictures import preprocessing

HOW = preprocessing(4)
NAMES = tuple(f"class {c}" for c in range(5))


def shades(root: Path, classes: int, each: int) -> Path:
    """Class folders; the pictures of class c have grey levels from 20 c, each another."""
    for c in range(classes):
        (root / f"class {c}").mkdir(parents=True)
        for i in range(each):
            Image.new("L", (8, 8), 20 * c + i).save(root / f"class {c}" / f"{i}.png")
    return root


def levels(pictures: np.ndarray) -> list[int]:
    return pictures[:, 0, 0, 0].tolist()


def test_every_class_calibrates_and_others_of_every_class_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "CALIBRATING", 10)
    monkeypatch.setattr(calibration, "JUDGING", 15)
    found = read_calibration(shades(tmp_path, classes=5, each=8), HOW, NAMES)
    assert [level // 20 for level in levels(found.calibrating)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert len(found.judging) == 15
    assert not set(levels(found.judging)) & set(levels(found.calibrating))
    assert set(levels(found.judging // 20)) == set(range(5))


def test_labels_are_the_models_own_and_of_those_that_judge(tmp_path: Path) -> None:
    found = read_calibration(shades(tmp_path, classes=5, each=8), HOW, NAMES[::-1])
    assert found.labels is not None
    assert found.labels.tolist() == [4 - level // 20 for level in levels(found.judging)]


def test_a_copy_of_a_picture_that_calibrates_does_not_judge(tmp_path: Path) -> None:
    root = shades(tmp_path, classes=2, each=8)
    Image.new("L", (8, 8), 0).save(root / "class 0" / "00.png")  # the same as 0.png, in the other half
    found = read_calibration(root, HOW, NAMES)
    assert found.labels is not None
    assert 0 in levels(found.calibrating)
    assert 0 not in levels(found.judging)
    assert len(found.labels) == len(found.judging)


def test_of_a_data_set_with_parts_the_validation_part_is_taken(tmp_path: Path) -> None:
    shades(tmp_path / "train", classes=2, each=4)
    shades(tmp_path / "val", classes=2, each=2)
    found = read_calibration(tmp_path, HOW, NAMES)
    assert len(found.calibrating) + len(found.judging) == 4


@pytest.mark.parametrize(
    ("names", "reason"),
    [(("a", "b"), "has the class 'class 0', which the model does not know"), (NAMES, "has no sub-folders")],
    ids=["other classes", "no classes"],
)
def test_without_the_models_classes_there_are_no_labels_and_the_reason_is_said(
    tmp_path: Path, names: tuple[str, ...], reason: str
) -> None:
    root = shades(tmp_path, classes=1, each=4)
    found = read_calibration(root if names != NAMES else root / "class 0", HOW, names)
    assert (len(found.calibrating), len(found.judging), found.labels) == (2, 2, None)
    assert reason in found.unlabelled


def test_hidden_files_and_what_the_server_would_refuse_are_passed_over(tmp_path: Path) -> None:
    root = shades(tmp_path, classes=1, each=2)
    (root / "class 0" / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    (root / "class 0" / "._0.png").write_bytes((root / "class 0" / "0.png").read_bytes())
    found = read_calibration(root, HOW, NAMES)
    assert len(found.calibrating) + len(found.judging) == 2


def test_a_pack_of_pixels_serves_too(tmp_path: Path) -> None:
    pixels = np.arange(2 * 48, dtype=np.uint8).reshape(2, 4, 4, 3)
    np.savez(tmp_path / "p.npz", image=pixels, label=np.array([0, 1]), classes=np.array(["a", "b"]))
    found = read_calibration(tmp_path / "p.npz", HOW, ("b", "a"))
    assert np.array_equal(np.concatenate([found.calibrating, found.judging]), pixels)
    assert found.labels is not None
    assert found.labels.tolist() == [0]


def test_of_a_large_pack_the_last_tenth_judges_which_training_holds_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "HELD_OUT", 8)
    monkeypatch.setattr(calibration, "CALIBRATING", 20)
    pixels = np.random.default_rng(0).integers(0, 256, (80, 4, 4, 3), dtype=np.uint8)
    pixels[:, 0, 0, 0] = np.arange(80)
    np.savez(tmp_path / "p.npz", image=pixels, label=np.zeros(80, int), classes=np.array(["a"]))
    found = read_calibration(tmp_path / "p.npz", HOW, ("a",))
    assert levels(found.judging) == [73, 74, 75, 77, 78, 79]  # of 72 to 79, those that do not calibrate


def test_where_there_is_no_picture_one_line_says_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("none")
    for source in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ValueError, match="holds no readable pictures; give a folder"):
            read_calibration(source, HOW, NAMES)
    with pytest.raises(ValueError, match=r"notes\.txt is not a pack"):
        read_calibration(tmp_path / "notes.txt", HOW, NAMES)
