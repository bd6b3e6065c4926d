"""Which pictures are held out."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.training.data import DataError, Pictures
from export.training.split import split_folder, stratified, tail
from service.files import write_json


def test_the_tail_of_a_shuffled_pack_is_held_out() -> None:
    pictures = Pictures(np.zeros((10, 1, 1, 3), np.uint8), np.arange(10), tuple("abcdefghij"))
    kept, held_out = tail(pictures, 0.2)
    assert (kept.labels.tolist(), held_out.labels.tolist()) == (list(range(8)), [8, 9])


def test_every_class_gives_its_share_but_never_its_only_picture() -> None:
    labels = np.repeat([0, 1, 2, 3], [50, 10, 2, 1])
    held_out = np.bincount(labels[stratified(labels, 0.2, seed=1)], minlength=4)
    assert held_out.tolist() == [10, 2, 1, 0]


def test_a_seed_gives_one_split() -> None:
    labels = np.repeat([0, 1], 50)
    assert np.array_equal(stratified(labels, 0.2, 1), stratified(labels, 0.2, 1))
    assert not np.array_equal(stratified(labels, 0.2, 1), stratified(labels, 0.2, 2))


def test_the_split_of_a_folder_is_written_down_and_kept(
    class_folder: Callable[[int], Path], tmp_path: Path
) -> None:
    folder, record = class_folder(10), tmp_path / "run" / "split.json"
    first = split_folder(folder, 16, record, 0.2, seed=1)
    assert (len(first.train), len(first.held_out)) == (24, 6)
    assert first.record is not None
    write_json(record, first.record)
    written = json.loads(record.read_text())
    assert set(written["train"]) | set(written["held_out"]) == {
        p.relative_to(folder).as_posix() for p in folder.rglob("*.png")
    }
    again = split_folder(folder, 16, record, 0.5, seed=2)  # what is written counts, not the new wish
    assert again.held_out.names == first.held_out.names
    Image.new("RGB", (8, 8)).save(folder / "red" / "new.png")
    grown = split_folder(folder, 16, record, 0.2, seed=1)
    assert "red/new.png" in grown.train.names
    assert grown.held_out.names == first.held_out.names


def test_a_folder_with_train_and_val_is_taken_as_it_is(
    class_folder: Callable[[int], Path], tmp_path: Path
) -> None:
    folder = class_folder(4)
    both = tmp_path / "both"
    for part in ("train", "val"):
        (both / part).parent.mkdir(exist_ok=True)
        (both / part).symlink_to(folder, target_is_directory=True)
    split = split_folder(both, 16, tmp_path / "split.json", 0.2, 1)
    assert (len(split.train), len(split.held_out)) == (12, 12)
    assert split.record is None


def test_classes_of_a_single_picture_leave_nothing_to_hold_out(
    class_folder: Callable[[int], Path], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="at least two"):
        split_folder(class_folder(1), 16, tmp_path / "split.json", 0.2, 1)
