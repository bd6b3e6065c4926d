"""The model repository on disk: `<repository>/<name>/<version>/model.onnx` and the files beside it. Standard
library only; opens no model.

Versions are folder names that are whole numbers; the highest is the newest. What a file contains is looked at
by the engine, what a `config.json` says by `settings`. A folder that cannot be read is named, and hides no
other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from .errors import CannotStart, UnknownModel

FILES = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}
AUTO = "auto"  # whichever file of a version fits best, see `precision`
EXPLAIN, CONFIG = "explain.onnx", "config.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VERSION = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class ModelFiles:
    """One version of one model. model: the file that is served. explain: the gradient graph, config: this
    model's own settings, if they are there."""

    name: str
    version: str
    model: Path
    explain: Path | None
    config: Path | None = None

    def of(self, precision: str) -> ModelFiles:
        """The same version with the file of another precision, whether it is there or not."""
        return replace(self, model=self.model.with_name(FILES[precision]))

    @property
    def siblings(self) -> list[Path]:
        """The files of the other precisions that are there."""
        paths = [self.model.with_name(name) for name in FILES.values()]
        return [path for path in paths if path != self.model and _present(path)]

    @property
    def stamp(self) -> tuple[tuple[str | int, ...], ...]:
        """What changes when a file of the version is replaced, written or made readable."""
        stats = [
            (name, (self.model.parent / name).stat())
            for name in (*FILES.values(), EXPLAIN, CONFIG)
            if _present(self.model.parent / name)
        ]
        return tuple((name, s.st_size, s.st_mtime_ns, s.st_ino, s.st_mode) for name, s in stats)


@dataclass(frozen=True)
class Contents:
    """What a repository holds. versions: by name, oldest first. unreadable: `<name>` or `<name>/<version>` of
    folders that cannot be looked into, with the system's reason."""

    versions: tuple[ModelFiles, ...]
    unreadable: dict[str, str]


def embedded() -> Path:
    """The repository that ships with the server."""
    return Path(str(resources.files("service") / "models"))


def file_names(precision: str) -> tuple[str, ...]:
    """The files that may be served as `precision`: any with AUTO."""
    return tuple(FILES.values()) if precision == AUTO else (FILES[precision],)


def contents(repository: Path, precision: str = "fp32") -> Contents:
    """Every version that has a file of `precision` (any with AUTO) or settings of its own; CannotStart where
    the repository cannot be read."""
    try:
        names = sorted(path.name for path in repository.iterdir())
    except OSError as error:
        raise CannotStart(
            f"the model repository {repository} cannot be read ({error.strerror}); set PACA_MODELS to "
            "<repository> with <name>/<version>/model.onnx in it"
        ) from None
    found: list[ModelFiles] = []
    unreadable: dict[str, str] = {}
    for name in names:
        try:
            found += _versions(repository, name, precision, unreadable)
        except OSError as error:
            unreadable[name] = error.strerror or str(error)
    return Contents(tuple(found), unreadable)


def _versions(repository: Path, name: str, precision: str, unreadable: dict[str, str]) -> list[ModelFiles]:
    if not _NAME.fullmatch(name) or not _is_folder(repository / name):
        return []
    numbers = sorted(
        (p.name for p in (repository / name).iterdir() if _VERSION.fullmatch(p.name)),
        key=lambda v: (int(v), v),
    )
    found = []
    for version in numbers:
        folder = repository / name / version
        try:
            models = [folder / file for file in file_names(precision)]
            explain, config = folder / EXPLAIN, folder / CONFIG
            has = {path: _present(path) for path in (*models, explain, config)}
        except OSError as error:
            unreadable[f"{name}/{version}"] = error.strerror or str(error)
            continue
        model = next((path for path in models if has[path]), models[0])
        if has[model] or has[config]:
            found.append(
                ModelFiles(
                    name, version, model, explain if has[explain] else None, config if has[config] else None
                )
            )
    return found


def _present(path: Path) -> bool:
    """Whether there is something at `path`, a folder included; OSError where the system does not say."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _is_folder(path: Path) -> bool:
    return _present(path) and path.is_dir()


def versions(repository: Path, name: str, precision: str = "fp32") -> list[ModelFiles]:
    """All versions of `name`, oldest first; empty where there is none or the name is not one."""
    return [files for files in contents(repository, precision).versions if files.name == name]


def names(repository: Path, precision: str = "fp32") -> list[str]:
    """Models with at least one version, in alphabetical order; CannotStart where the folder is missing."""
    return list(dict.fromkeys(files.name for files in contents(repository, precision).versions))


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
