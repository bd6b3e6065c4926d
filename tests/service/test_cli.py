"""The command `paca` as a program: tables for people, JSON for machines, one line and exit code 1 when it
fails, 2 for wrong usage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.cli import classify, commands, report_names
from service.version import this_build


def paca(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments], input=stdin, capture_output=True, timeout=120
    )


@pytest.fixture
def model(tiny_repository: Path) -> str:
    return str(tiny_repository / "tiny" / "1" / "model.onnx")


def test_a_folder_of_pictures_is_classified_as_json_lines(tmp_path: Path, model: str, jpeg: bytes) -> None:
    for name in ("b.jpg", "a.jpg"):
        (tmp_path / name).write_bytes(jpeg)
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "broken.jpg").write_bytes(jpeg[:700])
    done = paca("classify", str(tmp_path), "--model", model, "--json")
    assert done.returncode == 1, "a picture failed"
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(line["file"]).name for line in lines] == ["a.jpg", "b.jpg", "broken.jpg"]
    assert len(lines[0]["predictions"]) == 4
    assert "error" in lines[2]


def test_a_picture_from_standard_input_gets_a_table(model: str, jpeg: bytes) -> None:
    done = paca("classify", "-", "--model", model, stdin=jpeg)
    assert done.returncode == 0
    assert b"picture" in done.stdout


def test_inspect_says_what_the_file_says_of_itself(model: str) -> None:
    found = json.loads(paca("inspect", model, "--json").stdout)
    assert (found["variant"], found["opset"], found["attention_nodes"], found["self_test"]) == (
        "tiny",
        23,
        3,
        "passed",
    )
    assert b"3 clusters" in paca("inspect", model).stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["classify", "absent.jpg"], b"absent.jpg is neither a file nor a folder"),
        (["classify", "pyproject.toml", "--model", "absent.onnx"], b"make a model with `paca export`"),
        (["inspect", "pyproject.toml"], b"not an ONNX file"),
        (["serve", "--models", "absent"], b"the model repository absent cannot be read"),
        (["serve", "--provider", "tpu"], b"PACA_PROVIDER='tpu' is not valid"),
    ],
)
def test_a_failure_is_one_line_and_exit_code_1(arguments: list[str], reason: bytes) -> None:
    done = paca(*arguments)
    assert done.returncode == 1, done.stderr
    assert reason in done.stderr
    assert b"Traceback" not in done.stderr


def test_wrong_usage_is_exit_code_2() -> None:
    assert paca("classify").returncode == 2
    assert paca("nonsense").returncode == 2


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/one.jpg", "b/two.jpg"], ["one", "two"]),
        (["a/0001.jpg", "b/0001.jpg"], ["a-0001", "b-0001"]),
        (["a/x/1.jpg", "b/x/1.jpg", "c/2.jpg"], ["a-x-1", "b-x-1", "2"]),
        (["/a/1.jpg", "../a/1.png", "1.webp"], ["a-1", "a-1-2", "1"]),
        (["A/Ä.jpg", "a/A\u0308.JPG"], ["A-Ä", "a-A\u0308-2"]),
        (["a/1.jpg", "b/1.jpg", "a-1.jpg"], ["a-1", "b-1", "a-1-2"]),
        (["-", "stdin.jpg"], ["stdin", "stdin-2"]),
        ([], []),
    ],
)
def test_every_picture_gets_a_report_of_its_own(paths: list[str], names: list[str]) -> None:
    assert report_names(paths) == names


def test_pictures_of_one_name_in_two_folders_keep_both_reports(
    tmp_path: Path, model: str, jpeg: bytes
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0001.jpg").write_bytes(jpeg)
    pictures = [str(tmp_path / folder / "0001.jpg") for folder in ("a", "b")]
    assert paca("explain", *pictures, "--model", model, "-o", str(tmp_path / "out")).returncode == 0
    assert sorted(p.name for p in (tmp_path / "out").glob("*.html")) == ["a-0001.html", "b-0001.html"]


def test_a_folder_is_read_by_content_and_what_is_left_out_is_counted(
    tmp_path: Path, model: str, jpeg: bytes
) -> None:
    for name in ("a.jfif", "b", ".hidden.jpg", "Thumbs.db"):
        (tmp_path / name).write_bytes(jpeg)
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text("no picture")
    done = paca("classify", str(tmp_path), "--model", model, "--json")
    assert [Path(json.loads(line)["file"]).name for line in done.stdout.splitlines()] == ["a.jfif", "b"]
    assert b"left out: 4 files: no JPEG" in done.stderr
    assert b"left out: 2 files: hidden" in done.stderr


def test_a_folder_is_classified_picture_by_picture(tmp_path: Path, model: str, jpeg: bytes) -> None:
    """The second picture is a pipe into which nobody has written: the answer to the first comes first."""
    (tmp_path / "a.jpg").write_bytes(jpeg)
    os.mkfifo(tmp_path / "b.jpg")
    pictures = [str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")]
    command = [sys.executable, "-m", "service", "classify", *pictures, "--model", model, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["file"] == pictures[0]
        (tmp_path / "b.jpg").write_bytes(jpeg)
        assert json.loads(process.stdout.readline())["file"] == pictures[1]
    assert process.returncode == 0


def test_where_no_picture_can_be_read_the_exit_code_is_1(tmp_path: Path, model: str) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"\xff\xd8\xff broken")
    done = paca("classify", str(tmp_path), "--model", model)
    assert done.returncode == 1
    assert b"b.jpg" in done.stderr
    assert paca("classify", str(tmp_path / "a.jpg"), "--model", model).returncode == 1


def test_square_brackets_in_names_are_shown(tmp_path: Path, model: str, jpeg: bytes) -> None:
    (tmp_path / "crane [machine].jpg").write_bytes(jpeg)
    assert b"[machine]" in paca("classify", str(tmp_path / "crane [machine].jpg"), "--model", model).stdout


def test_names_that_the_terminal_has_no_letters_for_are_no_failure(
    tmp_path: Path, model: str, jpeg: bytes
) -> None:
    (tmp_path / "鯉.jpg").write_bytes(jpeg)
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    command = [sys.executable, "-m", "service", "classify", str(tmp_path), "--model", model]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert b"\\u9bc9" in done.stdout


def test_one_picture_that_fails_does_not_stop_the_others_but_shows_in_the_exit_code(
    tmp_path: Path, model: str, jpeg: bytes
) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg[:700])
    (tmp_path / "b.jpg").write_bytes(jpeg)
    done = paca(
        "explain", str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg"), "--model", model, "--out", str(tmp_path)
    )
    assert done.returncode == 1
    assert b"a.jpg" in done.stderr
    assert (tmp_path / "b.html").is_file()


def test_version_says_what_runs() -> None:
    done = paca("--version")
    assert done.returncode == 0
    assert done.stdout.decode().strip() == str(this_build())


def test_a_checkout_that_was_never_installed_knows_its_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = commands()
    monkeypatch.setattr("service.cli.entry_points", lambda group: ())
    assert commands() == {name: point for name, point in installed.items() if name in commands()}
    assert {"serve", "classify", "explain", "inspect", "export"} <= set(commands())
    assert commands()["classify"].load() is classify


def test_a_bad_setting_is_said_in_one_plain_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACA_PORT", "tcp://10.96.0.17:80")
    done = paca("serve")
    assert done.returncode == 1
    assert done.stderr.decode().startswith(
        "paca: PACA_PORT='tcp://10.96.0.17:80' is not valid: this is no port"
    )


def test_a_misspelt_variable_is_named_at_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PACA_MODLES", "/nowhere")
    done = paca("serve", "--port", "0", "--models", str(tmp_path))
    assert b"PACA_MODLES is no setting and has no effect; is PACA_MODELS meant?" in done.stderr
