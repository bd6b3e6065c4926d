"""Scores as tables, JSON and a picture."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from export.training.metrics import Scores, score
from export.training.report import draw_confusion, print_scores, write_report


def scores(classes: int) -> Scores:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, 300)
    return score(
        rng.normal(0, 1, (300, classes)) + 2 * np.eye(classes)[labels],
        labels,
        tuple(f"class number {i}" for i in range(classes)),
    )


def test_tables_name_every_class_and_every_score() -> None:
    out = io.StringIO()
    print_scores(Console(file=out, width=120), "model on data", scores(3), {"speed": "7 pictures/s"})
    text = out.getvalue()
    assert all(
        word in text
        for word in ("model on data", "accuracy", "ece", "7 pictures/s", "class number 2", "confusion")
    )


def test_with_many_classes_the_largest_confusions_are_listed() -> None:
    out = io.StringIO()
    print_scores(Console(file=out, width=120), "title", scores(30), {})
    assert "most frequent confusions" in out.getvalue()


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
def test_the_confusion_matrix_is_a_picture_of_bearable_size(classes: int) -> None:
    image = draw_confusion(scores(classes))
    assert image.width == image.height
    assert 80 < image.width < 2200


def test_the_diagonal_of_a_perfect_model_is_dark_and_the_rest_white() -> None:
    perfect = score(
        np.eye(60)[np.arange(60)], np.arange(60), tuple(map(str, range(60)))
    )  # too many to write counts into the cells
    pixels = np.asarray(draw_confusion(perfect)).astype(int)
    inner = pixels[12:-12, 12:-12]
    dark = (inner.sum(2) < 300).mean()
    assert dark == pytest.approx(1 / 60, rel=0.1)


def test_files_are_written_where_asked(tmp_path: Path) -> None:
    found = scores(3)
    text, picture = write_report(tmp_path / "new" / "folder", found.to_dict(), found)
    assert json.loads(text.read_text())["accuracy"] == found.accuracy
    assert Image.open(picture).format == "PNG"
