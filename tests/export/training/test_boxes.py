"""Boxes come as people write them, and land where the network sees the object."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.training.boxes import FILE, read_boxes, seen
from export.training.data import DataError
from service.artifact import Preprocessing


@pytest.mark.parametrize(
    "text",
    [
        "a/1.png,0.1,0.2,0.5,0.6\na/1.png,0.5,0.5,1,1\n\nb/2.png,0,0,1,1\n",
        "\ufefffile,label,x0,y0,x1,y1\na/1.png,3,0.1,0.2,0.5,0.6\na/1.png,3,0.5,0.5,1,1\nb/2.png,4,0,0,1,1\n",
        "y1, x1, y0, x0, path\n0.6,0.5,0.2,0.1,./a\\1.png\n1,1,0.5,0.5,a/1.png\n1,1,0,0,b/2.png\n",
    ],
)
def test_columns_stand_in_their_order_or_under_their_names(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text, encoding="utf-8")
    assert read_boxes(tmp_path) == {
        "a/1.png": [(0.1, 0.2, 0.5, 0.6), (0.5, 0.5, 1, 1)],
        "b/2.png": [(0, 0, 1, 1)],
    }


def test_a_folder_without_boxes_has_none(tmp_path: Path) -> None:
    assert read_boxes(tmp_path) == {}


@pytest.mark.parametrize("line", ["a.png,0.5,0,0.2,1", "a.png,10,20,50,60", "a.png,0.1,0.2", "a.png,x,0,1,1"])
def test_a_wrong_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / FILE).write_text(f"b.png,0,0,1,1\n{line}\n")
    with pytest.raises(DataError, match=r"boxes.csv line 2: expected a relative path and x0, y0, x1, y1 as"):
        read_boxes(tmp_path)


def test_a_box_follows_the_crop(tmp_path: Path) -> None:
    """Of a picture twice as wide as high the network sees the middle half."""
    Image.fromarray(np.zeros((50, 100, 3), np.uint8)).save(tmp_path / "wide.png")
    how = Preprocessing((32, 32), "shortest", 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)
    (found,) = seen(tmp_path / "wide.png", [(0.25, 0.0, 0.5, 1.0)], how)
    assert found == pytest.approx((0, 0, 0.5, 1))
