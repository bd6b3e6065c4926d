"""The servers of the comparison: where each one's environment is, how it is started with a setting, and how
it wants its photo. Ours is one of them.

A peer is a folder here: app.py as its documentation advises, requirements.txt with pinned versions,
settings.json with every setting that is tried. `setup` creates its environment under .peers/ (ignored by
git), so that no peer's libraries meet ours or another's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from processes import Server, free_port

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PEERS = ("litserve", "bentoml", "ray_serve", "mosec")
OURS = "paca"
DEFAULTS, SHIPPED, INT8 = "defaults, the float32 file", "as shipped", "PACA_PRECISION=int8"
OURS_SETTINGS: dict[str, dict[str, str]] = {
    DEFAULTS: {"PACA_PRECISION": "fp32"},  # what the peers run
    SHIPPED: {},
    INT8: {"PACA_PRECISION": "int8"},
}


@dataclass(frozen=True)
class Contender:
    """A server at one setting. form, field: how it takes the photo, see `traffic.body`."""

    name: str
    setting: str
    command: tuple[str, ...]
    environment: dict[str, str]
    form: str
    field: str

    @property
    def as_shipped(self) -> bool:
        """Whether it may run another file than the others: ours, which chooses its own."""
        return self.name == OURS and self.setting != DEFAULTS

    def start(self, model: Path, photo: Path, on: Sequence[int], logs: Path) -> Server:
        """Starts it; it is not ready yet. One thread a run on every server."""
        port = free_port()
        fill = {
            "python": str(ROOT / ".peers" / self.name / "bin" / "python"),
            "folder": str(HERE / self.name),
            "port": str(port),
        }
        environment = {
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(HERE))),
            "BENCH_MODEL": str(model),
            "BENCH_PHOTO": str(photo),
            "BENCH_THREADS": str(len(on)),
            "BENCH_PORT": str(port),
            "PACA_PORT": str(port),
            "PACA_MODELS": str(repository(model, logs)),
            **QUIET,
            **self.environment,
        }
        logs.mkdir(parents=True, exist_ok=True)
        return Server(
            [part.format(**fill) for part in self.command], environment, port, on, logs / f"{self.name}.log"
        )


def repository(model: Path, folder: Path) -> Path:
    """A model repository under `folder` that holds this version alone."""
    root = folder / "repositories" / model.parents[1].name
    link = root / model.parents[1].name
    root.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(model.parents[1], target_is_directory=True)
    return root


QUIET = {
    "BENTOML_DO_NOT_TRACK": "True",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}


def ours(setting: str = DEFAULTS, form: str = "raw") -> Contender:
    return Contender(
        OURS, setting, (sys.executable, "-m", "service", "serve"), OURS_SETTINGS[setting], form, "file"
    )


def settings(peer: str) -> list[Contender]:
    """A peer at every setting of its settings.json."""
    known = json.loads((HERE / peer / "settings.json").read_text())
    return [
        Contender(peer, name, tuple(known["command"]), env, known["form"], known["field"])
        for name, env in known["settings"].items()
    ]


def missing() -> list[str]:
    """Peers without an environment."""
    return [peer for peer in PEERS if not (ROOT / ".peers" / peer / "installed").exists()]


def setup() -> None:
    """Creates every peer's environment from its requirements.txt."""
    for peer in missing():
        folder = ROOT / ".peers" / peer
        print(f"installing {peer} into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        requirements = HERE / peer / "requirements.txt"
        subprocess.run(
            [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "-r", requirements], check=True
        )
        (folder / "installed").touch()
