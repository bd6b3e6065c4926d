"""Which files of a folder are pictures, and what is said of the others."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from service.folders import HIDDEN, LeftOut, list_pictures, normal, readable, sub_folders, summary, walk
from service.images import accepted


def put(root: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def names(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in list_pictures(root).pictures]


def reasons(root: Path) -> dict[str, str]:
    return {item.path.as_posix(): item.reason for item in list_pictures(root).left_out}


def test_a_picture_is_known_by_its_bytes_whatever_it_is_called(tmp_path: Path, jpeg: bytes) -> None:
    called = ["a.jpg", "b.JFIF", "c", "d.heic", "e.txt", "f.jpg.bak", "g/h.jpe"]
    put(tmp_path, dict.fromkeys(called, jpeg))
    assert names(tmp_path) == called


def test_what_is_no_picture_is_named_with_its_reason(tmp_path: Path) -> None:
    put(tmp_path, {"a.jpg": b"", "b.jpg": b"<html>", "c/notes.txt": b"text"})
    (tmp_path / "d.jpg").symlink_to(tmp_path / "gone.jpg")
    os.mkfifo(tmp_path / "e.jpg")
    assert names(tmp_path) == []
    assert reasons(tmp_path) == {
        "a.jpg": "empty",
        "b.jpg": f"no {accepted()}",
        "c/notes.txt": f"no {accepted()}",
        "d.jpg": "a link to nothing",
        "e.jpg": "no ordinary file",
    }


@pytest.mark.parametrize(
    "hidden",
    [
        ".ipynb_checkpoints/a-checkpoint.jpg",
        "deep/.git/a.jpg",
        "__MACOSX/a.jpg",
        "@eaDir/a.jpg",
        "._a.jpg",
        "Thumbs.db",
        "thumbs.DB",
        ".DS_Store",
    ],
)
def test_hidden_files_and_folders_are_never_read(hidden: str, tmp_path: Path, jpeg: bytes) -> None:
    put(tmp_path, {"a.jpg": jpeg, hidden: jpeg})
    assert names(tmp_path) == ["a.jpg"]
    assert set(reasons(tmp_path).values()) == {HIDDEN}


def test_a_hidden_folder_that_is_named_itself_is_read(tmp_path: Path, jpeg: bytes) -> None:
    put(tmp_path, {".cache/a.jpg": jpeg})
    assert names(tmp_path / ".cache") == ["a.jpg"]


def test_links_are_followed_once_and_never_in_circles(tmp_path: Path, jpeg: bytes) -> None:
    put(tmp_path, {"outside/x.jpg": jpeg, "root/a/1.jpg": jpeg})
    root = tmp_path / "root"
    (root / "b").symlink_to(tmp_path / "outside", target_is_directory=True)
    (root / "c").symlink_to(tmp_path / "outside", target_is_directory=True)
    (root / "a" / "up").symlink_to(root, target_is_directory=True)
    (root / "d.jpg").symlink_to(tmp_path / "outside" / "x.jpg")
    assert names(root) == ["a/1.jpg", "b/x.jpg", "d.jpg"]
    assert reasons(root) == dict.fromkeys(("a/up", "c"), "a link to a folder that is read already")


def test_the_order_is_by_name_however_the_letters_are_written(tmp_path: Path, jpeg: bytes) -> None:
    decomposed = unicodedata.normalize("NFD", "é")
    put(tmp_path, dict.fromkeys(["z.jpg", f"{decomposed}b.jpg", "éa.jpg", "b/2.jpg", "b.jpg", "B.jpg"], jpeg))
    assert [normal(name) for name in names(tmp_path)] == [
        "B.jpg",
        "b/2.jpg",
        "b.jpg",
        "z.jpg",
        "éa.jpg",
        "éb.jpg",
    ]


def test_a_name_is_read_as_utf_8_whatever_the_locale_took_it_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert readable("e\u0301") == "é"
    assert readable(os.fsdecode(b"For\xeat")) == "For\udceat"
    monkeypatch.setattr(os, "fsencode", lambda name: name.encode("latin-1"))  # as on a Latin-1 machine
    assert readable("Ã\x84pfel") == "Äpfel"
    assert readable("Forêt") == "Forêt"


def test_a_folder_that_cannot_be_opened_is_named_and_the_walk_goes_on(
    tmp_path: Path, jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, {"closed/a.jpg": jpeg, "open/a.jpg": jpeg})
    listdir = os.listdir

    def refuse(path: Path) -> list[str]:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)  # root, who runs tests in containers, may open any folder
    assert names(tmp_path) == ["open/a.jpg"]
    assert reasons(tmp_path) == {"closed": "Permission denied"}


def test_the_walk_comes_by_one_file_after_the_other(tmp_path: Path, jpeg: bytes) -> None:
    put(tmp_path, {"a.jpg": jpeg, "b/c.jpg": jpeg})
    steps = walk(tmp_path)
    assert next(steps) == tmp_path / "a.jpg"
    (tmp_path / "b" / "d.jpg").write_bytes(jpeg)  # seen, since its folder is not open yet
    assert list(steps) == [tmp_path / "b" / "c.jpg", tmp_path / "b" / "d.jpg"]


def test_sub_folders_are_those_that_are_not_hidden(tmp_path: Path, jpeg: bytes) -> None:
    put(tmp_path, dict.fromkeys(["b/1.jpg", "a/1.jpg", ".git/1.jpg", "__MACOSX/1.jpg", "file.jpg"], jpeg))
    (tmp_path / "link").symlink_to(tmp_path / "a", target_is_directory=True)
    assert [path.name for path in sub_folders(tmp_path)] == ["a", "b", "link"]


def test_a_summary_counts_and_gives_examples() -> None:
    left_out = [LeftOut(Path(f"{i}.txt"), "no JPEG") for i in range(5)] + [LeftOut(Path("a"), "empty")]
    assert summary(left_out) == ["5 files: no JPEG (0.txt, 1.txt, 2.txt, …)", "a: empty"]
