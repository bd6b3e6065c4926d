"""Which pictures are held out."""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.training.data import DataError, Pictures
from export.training.split import Split, split_folder, stratified, tail
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


def put(root: Path, files: dict[str, int], seed: int = 0) -> Path:
    """Noise pictures: name → number of the noise, equal numbers being copies."""
    for name, number in files.items():
        noise = np.random.default_rng((seed, number)).integers(0, 256, (16, 16, 3), np.uint8)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(root / name)
    return root


def numbered(folder: str, numbers: range) -> dict[str, int]:
    return {f"{folder}/{i}.png": i for i in numbers}


def split(folder: Path, record: Path | None = None) -> Split:
    return split_folder(folder, 16, record or folder.parent / "split.json", 0.2, seed=1)


def test_a_test_part_is_neither_trained_on_nor_held_out(tmp_path: Path) -> None:
    root = put(tmp_path / "data", numbered("Train/a", range(10)) | numbered("Train/b", range(10, 20)))
    put(root, numbered("valid/a", range(20, 23)) | numbered("valid/b", range(30, 33)))
    put(root, numbered("TEST/b", range(40, 44)))
    found = split(root)
    assert (len(found.train), len(found.held_out), len(found.tests["test"])) == (20, 6, 4)
    assert found.tests["test"].labels.tolist() == [1] * 4
    assert found.notes == (
        "parts: Train/ is trained on, valid/ is held out, TEST/ is scored once, at the end",
        "the test part has no picture of the class a: no figure of it says whether the model knows them",
    )


def test_without_a_validation_part_some_of_the_training_part_is_held_out(tmp_path: Path) -> None:
    root = put(tmp_path / "data", numbered("train/a", range(10)) | numbered("train/b", range(10, 20)))
    put(root, numbered("test/a", range(20, 25)))
    found = split(root)
    assert (len(found.train), len(found.held_out), len(found.tests["test"])) == (16, 4, 5)
    assert found.record is not None
    assert set(found.record["held_out"]) == set(found.held_out.names)


def test_a_class_that_only_the_validation_part_has_is_refused(tmp_path: Path) -> None:
    root = put(tmp_path / "data", numbered("train/a", range(4)) | numbered("train/b", range(4, 8)))
    put(root, numbered("val/c", range(8, 12)))
    with pytest.raises(DataError, match="class 'c', which the training part has not"):
        split(root)


def test_names_of_parts_may_be_written_in_either_form_of_unicode(tmp_path: Path) -> None:
    apart = unicodedata.normalize("NFD", "é")
    root = put(tmp_path / "data", numbered("train/é", range(4)) | numbered("train/b", range(4, 8)))
    put(root, numbered(f"val/{apart}", range(8, 10)) | numbered("val/b", range(10, 12)))
    assert split(root).held_out.labels.tolist() == [0, 0, 1, 1]


def test_copies_stay_on_one_side_of_a_split_and_are_said(tmp_path: Path) -> None:
    files = numbered("a", range(20)) | numbered("b", range(20, 40))
    copies = {f"a/copy {i}.png": i for i in range(20)} | {"b/wrong.png": 0}
    found = split(put(tmp_path / "data", files | copies))
    held = {name.replace("copy ", "") for name in found.held_out.names}
    assert not held & {name.replace("copy ", "") for name in found.train.names}
    assert any("21 pictures are copies of others (a/0.png = a/copy 0.png" in note for note in found.notes)
    assert any("1 pictures stand in two classes (a/copy 0.png = b/wrong.png)" in note for note in found.notes)


def test_pictures_that_are_trained_on_and_judged_by_are_counted(tmp_path: Path) -> None:
    root = put(tmp_path / "data", numbered("train/a", range(10)) | numbered("train/b", range(10, 20)))
    put(root, numbered("val/a", range(8, 12)) | numbered("val/b", range(30, 33)))
    put(root, numbered("test/b", range(19, 21)))
    notes = split(root).notes
    assert any(
        "4 of the 7 held-out pictures are trained on too (a/10.png = b/10.png" in note for note in notes
    )
    assert any("1 of the 2 test pictures are trained on too" in note for note in notes)


def test_classes_of_one_picture_are_said_to_be_unjudged(tmp_path: Path) -> None:
    files = numbered("a", range(10)) | numbered("b", range(10, 20)) | {"c/1.png": 30, "d/1.png": 31}
    found = split(put(tmp_path / "data", files))
    assert found.train.classes == ("a", "b", "c", "d")
    assert (
        "nothing is held out of 2 classes, c, d: no figure says whether the model knows them" in found.notes
    )


def test_very_unequal_classes_are_said(tmp_path: Path) -> None:
    found = split(put(tmp_path / "data", numbered("a", range(100)) | numbered("b", range(100, 104))))
    assert any("very unequal: 3 of 'b' against 80 of 'a'" in note for note in found.notes)


@pytest.mark.parametrize(
    "content", ["", '{"held_out": ["a/1', '{"held_out": 3}', "[]", '{"held_out": ["x/1.png"]}']
)
def test_a_damaged_record_or_one_of_other_data_makes_a_new_split(content: str, tmp_path: Path) -> None:
    root = put(tmp_path / "data", numbered("a", range(10)) | numbered("b", range(10, 20)))
    (tmp_path / "split.json").write_text(content)
    found = split(root, tmp_path / "split.json")
    assert found.held_out.names == split(root, tmp_path / "absent.json").held_out.names


def test_hidden_copies_are_neither_trained_on_nor_held_out(tmp_path: Path) -> None:
    files = numbered("a", range(10)) | numbered("b", range(10, 20))
    hidden = {f"a/.ipynb_checkpoints/{i}-checkpoint.png": i for i in range(10)} | {"a/._1.png": 1}
    found = split(put(tmp_path / "data", files | hidden))
    assert len(found.train) + len(found.held_out) == 20
    assert len(found.train.skipped) == 2
