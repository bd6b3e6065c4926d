"""The pictures that int8 is calibrated on; that they are the server's is stated in test_pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export import calibration
from export.calibration import read_pictures
from export.pictures import preprocessing

HOW = preprocessing(4)


def shades(root: Path, classes: int, each: int) -> Path:
    """Class folders; the pictures of class c have the grey level c."""
    for c in range(classes):
        (root / f"class {c}").mkdir(parents=True)
        for i in range(each):
            Image.new("L", (8, 8), c).save(root / f"class {c}" / f"{i}.png")
    return root


def test_a_few_of_every_class_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "MAX_PICTURES", 10)
    found = read_pictures(shades(tmp_path, classes=5, each=8), HOW)
    assert found[:, 0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_hidden_files_and_what_the_server_would_refuse_are_passed_over(tmp_path: Path) -> None:
    root = shades(tmp_path, classes=1, each=2)
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    (root / "._0.png").write_bytes((root / "class 0" / "0.png").read_bytes())
    assert len(read_pictures(root, HOW)) == 2


def test_a_pack_of_pixels_serves_too(tmp_path: Path) -> None:
    pixels = np.arange(2 * 48, dtype=np.uint8).reshape(2, 4, 4, 3)
    np.savez(tmp_path / "p.npz", image=pixels, label=np.array([0, 1]), classes=np.array(["a", "b"]))
    assert np.array_equal(read_pictures(tmp_path / "p.npz", HOW), pixels)


def test_where_there_is_no_picture_one_line_says_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("none")
    for source in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ValueError, match="holds no readable pictures; give a folder"):
            read_pictures(source, HOW)
    with pytest.raises(ValueError, match=r"notes\.txt is not a pack"):
        read_pictures(tmp_path / "notes.txt", HOW)
