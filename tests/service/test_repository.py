"""Model folders: <repository>/<name>/<version>/model.onnx."""

import os
from pathlib import Path

import pytest

from service import repository
from service.errors import CannotStart, UnknownModel


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path in (
        "pets/1/model.onnx",
        "pets/10/model.onnx",
        "pets/9/model.onnx",
        "pets/9/explain.onnx",
        "pets/notes/model.onnx",
        "birds/2/model.int8.onnx",
        ".git/1/model.onnx",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"x")
    return tmp_path


def test_the_newest_version_is_the_highest_number_not_the_last_word(folder: Path) -> None:
    assert repository.find(folder, "pets").version == "10"
    assert [files.version for files in repository.versions(folder, "pets")] == ["1", "9", "10"]


def test_the_gradient_graph_is_found_beside_its_model(folder: Path) -> None:
    assert repository.find(folder, "pets", "9").explain == folder / "pets/9/explain.onnx"
    assert repository.find(folder, "pets", "1").explain is None


def test_only_models_with_a_file_of_the_precision_are_listed(folder: Path) -> None:
    assert repository.names(folder) == ["pets"]
    assert repository.names(folder, "int8") == ["birds"]


@pytest.mark.parametrize("name", ["fish", "../pets", "pets/9", "", ".git", "p\0ts"])
def test_an_unknown_name_lists_what_there_is_and_never_leaves_the_folder(folder: Path, name: str) -> None:
    with pytest.raises(UnknownModel, match="there are: pets"):
        repository.find(folder, name)


def test_an_unknown_version_lists_the_known_ones(folder: Path) -> None:
    with pytest.raises(UnknownModel, match="it has: 1, 9, 10"):
        repository.find(folder, "pets", "2")


def test_a_missing_folder_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match="PACA_MODELS"):
        repository.names(tmp_path / "absent")


def test_replacing_a_file_changes_the_stamp(folder: Path) -> None:
    files = repository.find(folder, "pets", "1")
    before = files.stamp
    files.model.write_bytes(b"longer")
    assert files.stamp != before


def test_settings_of_its_own_are_a_part_of_a_version(folder: Path) -> None:
    files = repository.find(folder, "pets", "1")
    assert files.config is None
    before = files.stamp
    (folder / "pets/1/config.json").write_text("{}")
    assert repository.find(folder, "pets", "1").config == folder / "pets/1/config.json"
    assert files.stamp != before


def test_a_version_with_settings_of_its_own_is_there_whatever_file_they_choose(folder: Path) -> None:
    (folder / "birds/2/config.json").write_text('{"precision": "int8"}')
    assert repository.names(folder) == ["birds", "pets"]
    files = repository.find(folder, "birds")
    assert files.of("int8").model == folder / "birds/2/model.int8.onnx"
    assert files.siblings == [folder / "birds/2/model.int8.onnx"]
    assert files.of("int8").siblings == []


def test_a_file_that_was_made_readable_or_swapped_for_an_equally_long_one_changes_the_stamp(
    folder: Path,
) -> None:
    files = repository.find(folder, "pets", "1")
    stamps = {files.stamp}
    files.model.chmod(0o600)
    stamps.add(files.stamp)
    stat = files.model.stat()
    files.model.with_name("new").write_bytes(b"y")
    files.model.with_name("new").replace(files.model)
    files.model.chmod(0o600)
    os.utime(files.model, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    stamps.add(files.stamp)
    assert len(stamps) == 3


def test_the_embedded_repository_holds_a_model() -> None:
    assert repository.names(repository.embedded())
