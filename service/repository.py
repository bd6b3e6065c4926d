"""The model repository on disk: `<repository>/<name>/<version>/model.onnx` and the files beside it. Standard
library only; opens no model.

Versions are folder names that are whole numbers; the highest is the newest. What a file contains is the
engine's business.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from .errors import CannotStart, UnknownModel

FILES = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class ModelFiles:
    """One version of one model. explain: the gradient graph, if there is one."""

    name: str
    version: str
    model: Path
    explain: Path | None

    @property
    def stamp(self) -> tuple[tuple[str, int, int], ...]:
        """What changes when a file is replaced: (name, size, modification time) of each."""
        stats = [(p.name, p.stat()) for p in (self.model, self.explain) if p]
        return tuple((name, s.st_size, s.st_mtime_ns) for name, s in stats)


def embedded() -> Path:
    """The repository that ships with the server."""
    return Path(str(resources.files("service") / "models"))


def versions(repository: Path, name: str, precision: str = "fp32") -> list[ModelFiles]:
    """All versions of `name` that have a file of `precision`, oldest first; empty where there is none."""
    if not _NAME.fullmatch(name) or not (repository / name).is_dir():
        return []
    found = []
    for folder in (repository / name).iterdir():
        model = folder / FILES[precision]
        if re.fullmatch(r"[0-9]{1,9}", folder.name) and model.is_file():
            explain = folder / "explain.onnx"
            found.append(ModelFiles(name, folder.name, model, explain if explain.is_file() else None))
    return sorted(found, key=lambda files: int(files.version))


def names(repository: Path, precision: str = "fp32") -> list[str]:
    """Models with at least one version, in alphabetical order; CannotStart where the folder is missing."""
    if not repository.is_dir():
        raise CannotStart(
            f"the model repository {repository} is not a folder; set PACA_MODELS to <repository> with "
            "<name>/<version>/model.onnx in it"
        )
    return sorted(p.name for p in repository.iterdir() if versions(repository, p.name, precision))


def find(repository: Path, name: str, version: str | None = None, precision: str = "fp32") -> ModelFiles:
    """The named version, the newest when none is named; UnknownModel says what there is."""
    found = versions(repository, name, precision)
    if not found:
        raise UnknownModel(
            f"no model {name!r} with precision {precision}; there are: "
            f"{', '.join(names(repository, precision)) or 'none'}"
        )
    if version is None:
        return found[-1]
    for files in found:
        if files.version == version:
            return files
    raise UnknownModel(
        f"model {name!r} has no version {version!r}; it has: {', '.join(f.version for f in found)}"
    )
