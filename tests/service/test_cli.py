"""The command `paca` as a program: tables for people, JSON for machines, one line and exit code 1 when it
fails, 2 for wrong usage."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


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
    assert done.returncode == 0
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
        (["inspect", "pyproject.toml"], b"not a model"),
        (["serve", "--models", "absent"], b"absent is not a folder"),
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
