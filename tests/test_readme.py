"""The README's commands, extracted and executed: what a newcomer types works as it stands (ports and paths
apart)."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving import served

README = Path("README.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def block(language: str, containing: str) -> str:
    (found,) = [text for text in blocks(language) if containing in text]
    return found


def shell(script: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path.cwd()),
        **variables,
    }
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The first command of the README, on a free port."""
    (command,) = [line for line in block("sh", "make serve").splitlines() if line]
    assert command == "make serve"
    with served(None, [*command.split(), "PORT=0"]) as serving:
        yield serving.url


def test_the_curl_lines_answer(server: str, jpeg: bytes, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(jpeg)
    classify, explain, regions, overlay = block("sh", "/classify").strip().splitlines()
    on = "curl -sS --fail-with-body --retry 5"  # the second model may still load
    answers = [
        shell(line.replace("curl", on).replace("localhost:8000", server), tmp_path)
        for line in (classify, explain, overlay, regions)
    ]
    assert [a.returncode for a in answers] == [0, 0, 0, 0], [a.stdout[-500:] + a.stderr for a in answers]
    assert len(json.loads(answers[0].stdout)["predictions"]) == 5
    assert json.loads(answers[1].stdout)["explanations"][0]["images"]["overlay"]["mime"] == "image/webp"
    assert (tmp_path / "overlay.webp").read_bytes()[8:12] == b"WEBP"
    assert (tmp_path / "regions.webp").read_bytes()[8:12] == b"WEBP"


def test_the_python_lines_run(jpeg: bytes, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(jpeg)
    (tmp_path / "readme.py").write_text(block("python", "Predictor"))
    done = shell("python readme.py", tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\(\d+, \d+, \d+, \d+\)", done.stdout)


def test_a_checkpoint_becomes_a_served_model(tmp_path: Path) -> None:
    import torch

    from export.paca import create

    torch.manual_seed(0)
    torch.save({"state_dict": create("pacavit_tiny_p2cconv_100_0").state_dict()}, tmp_path / "weights.pth")
    export = next(line for line in block("sh", "pacavit_tiny").splitlines() if line.startswith("paca export"))
    done = shell(export, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["attention_nodes"], report["name"]) == (10, "birds")
    assert shell("paca inspect models/birds/1/model.onnx --json", tmp_path).returncode == 0


def test_every_file_the_readme_links_to_is_there() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)", README)
    assert len(links) > 5
    assert [link for link in links if not Path(link).exists()] == []


def test_the_compose_files_the_readme_names_are_there() -> None:
    named = re.findall(r"-f (\S+\.yaml)", block("sh", "docker compose"))
    assert named
    assert all(Path(name).is_file() for name in named)
    assert shutil.which("make")
