"""The parts of a data set, under the names that people and tools give them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from export.parts import Parts, find_parts, role_of
from export.pictures import DataError

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, jpeg: bytes) -> Make:
    """Makes a folder with a picture in each of these sub-folders."""

    def build(*folders: str) -> Path:
        for name in folders:
            (tmp_path / "data" / name).mkdir(parents=True)
            (tmp_path / "data" / name / "1.jpg").write_bytes(jpeg)
        return tmp_path / "data"

    return build


def names(parts: Parts | None) -> tuple[str | None, ...]:
    assert parts is not None
    return tuple(path.name if path else None for path in (parts.train, parts.val, parts.test))


@pytest.mark.parametrize(
    ("name", "role"),
    [
        *(
            (name, "train")
            for name in ("train", "Training", "TRAIN", "training_set", "train2017", "trainset")
        ),
        *((name, "val") for name in ("val", "valid", "Validation", "dev", "val-images", "VALID")),
        *((name, "test") for name in ("test", "Testing", "test_set", "Test Data")),
        *((name, None) for name in ("cat", "trains", "data", "contest", "set", "2017", "détest")),
    ],
)
def test_a_part_is_known_by_its_name_in_any_case(name: str, role: str | None) -> None:
    assert role_of(name) == role


def test_roboflows_parts_are_found(make: Make) -> None:
    assert names(find_parts(make("train/a", "train/b", "valid/a", "test/b"))) == ("train", "valid", "test")


def test_hidden_folders_are_no_parts_and_no_classes(make: Make) -> None:
    data = make("Train/a", "Train/b", "VAL/a", ".ipynb_checkpoints/x", "__MACOSX/Train")
    assert names(find_parts(data)) == ("Train", "VAL", None)


@pytest.mark.parametrize(
    "folders",
    [
        ("cat", "dog"),
        ("bus", "car", "train"),  # a train among vehicles
        ("valid", "invalid"),
        ("cat/indoors", "dog/indoors", "cat/outdoors", "dog/outdoors"),
        ("contest/a", "contest/b", "game/a", "game/b"),
    ],
)
def test_class_folders_are_no_parts(folders: tuple[str, ...], make: Make) -> None:
    assert find_parts(make(*folders)) is None


def test_a_part_without_class_folders_is_not_used_and_that_is_said(make: Make) -> None:
    parts = find_parts(make("train/a", "train/b", "test"))
    assert names(parts) == ("train", None, None)
    assert parts is not None
    assert "test/ has no class folders" in parts.notes[0]


def test_what_stands_beside_the_parts_is_not_read_and_that_is_said(make: Make) -> None:
    parts = find_parts(make("train/a", "val/a", "raw"))
    assert parts is not None
    assert parts.notes == ("raw/ is no part of the data set by its name: not read",)


@pytest.mark.parametrize(
    ("folders", "reason"),
    [
        (("train", "test"), "train/ must hold one sub-folder a class"),
        (("cat", "dog", "test"), "test/ looks like a part .* class folders such as cat/ stand beside it"),
        (("cat/x", "dog/x", "val/cat"), "val/ looks like a part"),
        (("train/a", "train/b", "cat"), "train/ looks like a part"),
        (("train/a", "val/a", "valid/a"), r"2 folders for one part \(val/, valid/\)"),
        (("seg_train/a", "seg_train/b", "seg_test/a", "seg_test/b"), "look like parts of a data set"),
        (
            ("my_train/in/a", "my_train/in/b", "my_test/in/a", "my_test/in/b"),
            "name them train/, val/ and test/",
        ),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused_with_the_reason(
    folders: tuple[str, ...], reason: str, make: Make
) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        find_parts(make(*folders))
    assert "\n" not in str(caught.value)
