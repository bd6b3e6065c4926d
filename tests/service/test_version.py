"""What runs here, as far as it can be known."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest

from service import __version__
from service.version import commit, this_build

ONE = "1f2e3d4c5b6a798817263544536271809fae1b2c"


def test_the_build_names_this_program_and_its_runtime() -> None:
    build = this_build()
    assert (build.version, build.onnxruntime) == (__version__, onnxruntime.__version__)
    assert "CPUExecutionProvider" in build.providers
    assert str(build).startswith(f"paca {__version__}")


@pytest.mark.parametrize(
    "files",
    [
        {"HEAD": ONE},
        {"HEAD": "ref: refs/heads/main", "refs/heads/main": ONE},
        {"HEAD": "ref: refs/heads/main", "packed-refs": f"# pack-refs\n{ONE} refs/heads/main\n"},
    ],
)
def test_the_commit_of_a_checkout_is_found(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / ".git" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / ".git" / name).write_text(text + "\n")
    assert commit(tmp_path) == ONE


def test_without_a_checkout_there_is_none(tmp_path: Path) -> None:
    assert commit(tmp_path) is None
