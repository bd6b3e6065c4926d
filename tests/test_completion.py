"""Completion in bash, as `paca --install-completion` sets it up: the script that paca prints, in a real
shell."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import unavailable

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A user with bash, a home folder, and paca on the path."""
    if not shutil.which("bash"):
        unavailable("no bash on this machine")
    return {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(tmp_path_factory.mktemp("home"))}


def bash(script: str, environment: dict[str, str]) -> list[str]:
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("paca cl", {"classify"}),
        ("paca ", {"serve", "classify", "explain", "export"}),
        ("paca explain --top", {"--top-k"}),
        ("paca explain --method ", {"focus", "cam", "fine", "grouping"}),
        ("paca serve --provider c", {"cpu", "cuda"}),
    ],
)
def test_bash_completes_what_was_typed(environment: dict[str, str], typed: str, offered: set[str]) -> None:
    words = typed.split(" ")
    found = bash(
        f"""eval "$(_PACA_COMPLETE=source_bash paca)"; COMP_WORDS=({" ".join(words)} "");
        COMP_CWORD={len(words) - 1};
        _paca_completion paca; printf '%s\\n' "${{COMPREPLY[@]}}" """,
        environment,
    )
    assert offered <= set(found)
    assert len(offered) > 3 or offered == set(found)


def test_installing_it_makes_a_new_shell_complete(environment: dict[str, str]) -> None:
    # run by a bash, which is how paca knows whose completion to install
    bash("paca --install-completion; exit $?", environment)
    assert "_paca_completion" in " ".join(bash('. "$HOME/.bashrc"; complete -p paca', environment))
