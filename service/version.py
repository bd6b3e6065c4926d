"""What runs here: this program's version and commit, ONNX Runtime and its providers. For `GET /version`,
`paca --version` and the metric `paca_build_info`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from . import __version__

PACKAGE = "paca-serve"


@dataclass(frozen=True)
class Build:
    """commit: None where nothing here knows it. onnxruntime: None where it is not installed. providers: as
    ONNX Runtime names what this build of it can run on, the preferred first."""

    version: str
    commit: str | None
    onnxruntime: str | None
    providers: tuple[str, ...]

    def __str__(self) -> str:
        commit = f" ({self.commit[:12]})" if self.commit else ""
        runtime = (
            f"ONNX Runtime {self.onnxruntime}: {', '.join(self.providers)}"
            if self.onnxruntime
            else "ONNX Runtime is not installed"
        )
        return f"paca {self.version}{commit}, {runtime}"


@cache
def this_build() -> Build:
    """The build that runs."""
    try:
        import onnxruntime
    except ImportError:
        return Build(__version__, commit(), None, ())
    providers = tuple(onnxruntime.get_available_providers())
    return Build(__version__, commit(), onnxruntime.__version__, providers)


def commit(root: Path = Path(__file__).parents[1]) -> str | None:
    """The commit of the checkout at `root`, or the one that pip installed from."""
    git = root / ".git"
    try:
        head = (git / "HEAD").read_text("utf-8").strip()
        if not head.startswith("ref: "):
            return head
        ref = head.removeprefix("ref: ")
        if (git / ref).is_file():
            return (git / ref).read_text("utf-8").strip()
        packed = (git / "packed-refs").read_text("utf-8").splitlines()
        return next((line.split()[0] for line in packed if line.endswith(f" {ref}")), None)
    except (OSError, UnicodeDecodeError):
        return _installed_commit()


def _installed_commit() -> str | None:
    """Where pip installed from a repository it wrote down the commit (PEP 610)."""
    try:
        text = metadata.distribution(PACKAGE).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    found = json.loads(text or "{}").get("vcs_info", {}).get("commit_id")
    return found if isinstance(found, str) else None
