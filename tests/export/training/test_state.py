"""A run belongs to its settings and its data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export.training.data import DataError, Pictures
from export.training.state import DATA, LAST, RECIPE, best_weights, check_data, check_same


def pictures(classes: tuple[str, ...], numbers: range, size: int = 4) -> Pictures:
    """Noise pictures, equal for equal numbers."""
    images = [np.random.default_rng(n).integers(0, 256, (size, size, 3), np.uint8) for n in numbers]
    return Pictures(np.stack(images), np.arange(len(numbers)) % len(classes), classes)


HELD_OUT = pictures(("a", "b"), range(100, 104))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of one epoch on 20 pictures."""
    assert check_data(tmp_path, pictures(("a", "b"), range(20)), HELD_OUT) == []
    (tmp_path / LAST).write_bytes(b"weights")
    return tmp_path


def test_the_same_data_goes_on_in_silence(run: Path) -> None:
    assert check_data(run, pictures(("a", "b"), range(20)), HELD_OUT) == []


def test_a_picture_that_moved_between_training_and_held_out_changes_nothing(run: Path) -> None:
    both = Pictures(
        np.concatenate([pictures(("a", "b"), range(20)).images, HELD_OUT.images[:2]]),
        np.concatenate([np.arange(20) % 2, HELD_OUT.labels[:2]]),
        ("a", "b"),
    )
    assert check_data(run, both, HELD_OUT.take(np.array([2, 3]))) == []


def test_pictures_added_and_taken_away_are_counted(run: Path) -> None:
    assert check_data(run, pictures(("a", "b"), range(2, 30)), HELD_OUT) == [
        "since this run began, 10 pictures were added and 2 taken away"
    ]


@pytest.mark.parametrize(
    ("classes", "difference"),
    [
        (("a", "c"), "it has b; this data has c"),
        (("a", "b", "c"), "this data has c"),
        (("b", "a"), "the same ones in another order"),
    ],
)
def test_other_classes_are_refused_and_named(classes: tuple[str, ...], difference: str, run: Path) -> None:
    before = (run / DATA).read_bytes()
    with pytest.raises(DataError, match=rf"other classes \({difference}\); choose another --out"):
        check_data(run, pictures(classes, range(20)), pictures(classes, range(100, 104)))
    assert (run / DATA).read_bytes() == before


def test_other_pictures_of_the_same_classes_are_refused(run: Path) -> None:
    with pytest.raises(DataError, match=r"other pictures \(only 4 of its 24 are in this data\); choose"):
        check_data(run, pictures(("a", "b"), range(50, 70)), HELD_OUT)


def test_classes_whose_pictures_were_swapped_are_other_data(run: Path) -> None:
    train = pictures(("a", "b"), range(20))
    swapped = Pictures(train.images, 1 - train.labels, train.classes)
    with pytest.raises(DataError, match="other pictures"):
        check_data(run, swapped, HELD_OUT)


def test_before_the_first_epoch_any_data_may_come(tmp_path: Path) -> None:
    check_data(tmp_path, pictures(("a", "b"), range(20)), HELD_OUT)
    assert check_data(tmp_path, pictures(("x", "y"), range(20)), HELD_OUT.take(np.arange(0))) == []


@pytest.mark.parametrize("content", [b"", b'{"recipe": {"lr": 0', b"\xff\xfe\x00"])
def test_half_written_files_do_not_block_a_run(content: bytes, run: Path) -> None:
    (run / RECIPE).write_bytes(content)
    (run / DATA).write_bytes(content)
    check_same(run, {"recipe": {"lr": 0.1}})
    assert check_data(run, pictures(("a", "b"), range(20)), HELD_OUT) == []
    with pytest.raises(DataError, match=r"with other settings \(recipe\.lr was 0\.1\)"):
        check_same(run, {"recipe": {"lr": 0.2}})


def test_settings_with_a_byte_order_mark_are_the_same_settings(run: Path) -> None:
    check_same(run, {"recipe": {"lr": 0.1}})
    (run / RECIPE).write_bytes(b"\xef\xbb\xbf" + (run / RECIPE).read_bytes())
    check_same(run, {"recipe": {"lr": 0.1}})


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no training run"):
        best_weights(tmp_path)
