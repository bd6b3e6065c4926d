"""Files with weights → the values in them, without ever running code from a file; and for what is no such
file, what it is and what to do.

Knows .safetensors, everything that torch.save writes, and the index of a checkpoint in several files. Which
of the values are a network's weights is found by `unwrap`.
"""

from __future__ import annotations

import _compat_pickle
import hashlib
import pickle  # nosec B403  its errors and opcodes; torch's safe unpickler reads
import re
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from service.files import read_json

HEAD_BYTES = 512  # of a file, that tell what it is
REMEDY = "where it was made, save the weights alone: torch.save(model.state_dict(), 'weights.pth')"
MAX_UNKNOWN_TYPES = 200


class CheckpointError(Exception):
    """The file cannot be used; the message is one line that says why."""


@dataclass(frozen=True)
class Content:
    """value: what the file holds, a mapping where all is well. metadata: of a .safetensors. sha256: of the
    file, or of all files of a checkpoint in several. strange: types that stand-ins were put in for."""

    value: Any
    metadata: dict[str, str]
    sha256: str
    strange: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kind:
    """A kind of file that people take for a checkpoint."""

    what: str
    remedy: str
    matches: Callable[[bytes], bool]


def _starts(*marks: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(marks)


def _magic(*marks: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(marks)


UNPACK = "unpack it and give the file with the weights"
KINDS = (
    Kind(
        "a Git LFS pointer, not the file itself",
        "run `git lfs pull` where it was cloned, or download the file itself",
        _starts(b"version https://git-lfs"),
    ),
    Kind(
        "a git-annex pointer, not the file itself",
        "run `git annex get`",
        _starts(b"/annex/objects", b"../.git/annex"),
    ),
    Kind(
        "a web page, not the file itself",
        "download it by the link behind the page's download button",
        _starts(b"<!doctype html", b"<html", b"<head", b"<!--"),
    ),
    Kind(
        "the XML answer of a server, often an error in place of the file",
        "look into it, and download the file again",
        _starts(b"<?xml"),
    ),
    Kind("a gzip archive", UNPACK, _magic(b"\x1f\x8b")),
    Kind("an xz archive", UNPACK, _magic(b"\xfd7zXZ")),
    Kind("a bzip2 archive", UNPACK, _magic(b"BZh")),
    Kind("a Zstandard archive", UNPACK, _magic(b"\x28\xb5\x2f\xfd")),
    Kind("a 7z archive", UNPACK, _magic(b"7z\xbc\xaf")),
    Kind("a RAR archive", UNPACK, _magic(b"Rar!")),
    Kind("a tar archive", UNPACK, lambda head: head[257:262] == b"ustar"),
    Kind("an HDF5 file, as Keras writes them", "give the PyTorch weights", _magic(b"\x89HDF")),
    Kind("a GGUF file", "give the PyTorch weights", _magic(b"GGUF")),
    Kind("a TensorFlow Lite model", "give the PyTorch weights", lambda head: head[4:8] == b"TFL3"),
    Kind("a NumPy array", "give the PyTorch weights", _magic(b"\x93NUMPY")),
    Kind(
        "a pickle that torch.save did not write",
        REMEDY,
        lambda head: head[:1] == b"\x80" and b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19" not in head[:20],
    ),
    Kind(
        "an ONNX model, which is exported already",
        "serve it, or `paca evaluate` it",
        lambda head: head[:1] == b"\x08" and b"\x12" in head[:4],
    ),
)


def read(path: Path) -> Content:
    """What `path` holds. Raises CheckpointError, whatever is wrong with it."""
    if path.is_dir():
        raise CheckpointError(f"cannot read {path}: Is a directory{_inside(path)}")
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    if head[8:9] == b"{" and head[6:8] == b"\0\0":  # the length of the header, then its JSON
        value, metadata = _read_safetensors(path)
        return Content(value, metadata, sha256)
    if kind := next((kind for kind in KINDS if kind.matches(head)), None):
        raise CheckpointError(f"{path.name} is {kind.what}; {kind.remedy}")
    if head.lstrip()[:1] in (b"{", b"["):
        return _read_index(path)
    _refuse_other_archives(path)
    value, strange = _read_pickle(path)
    if not isinstance(value, dict | list | tuple):
        raise CheckpointError(f"{path.name} holds a {type(value).__name__}, not a dictionary of weights")
    return Content(value, {}, sha256, strange)


def part_of_several(path: Path) -> str:
    """A hint for a file that is one part of a checkpoint in several; else nothing."""
    match = re.search(r"-0*(\d+)-of-0*(\d+)\.", path.name)
    if match is None:
        return ""
    index = next(
        (other.name for other in sorted(path.parent.glob("*.index.json"))), "the index, *.index.json"
    )
    return f"; it is part {match[1]} of {match[2]}: give {index}"


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 (not a dict)
    except Exception as error:  # what its library raises on damaged files is no contract
        raise CheckpointError(f"{path.name} is no whole .safetensors file: {line(error)}") from None


def _read_index(path: Path) -> Content:
    """A checkpoint in several files, from its index {"weight_map": {tensor: file}}."""
    index = read_json(path)
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise CheckpointError(f"{path.name} is JSON text, not weights; give the file with the weights")
    names = sorted(set(files.values()))
    if any(Path(name).name != name for name in names):
        raise CheckpointError(f"{path.name} names files outside of its folder; it was not followed")
    if absent := [name for name in names if not (path.parent / name).is_file()]:
        raise CheckpointError(
            f"{path.name} is the index of a checkpoint in {len(names)} files, and {len(absent)} of them are "
            f"not beside it: {', '.join(absent[:3])}{', …' if len(absent) > 3 else ''}"
        )
    parts = [read(path.parent / name) for name in names]
    value: dict[str, Any] = {}
    for name, part in zip(names, parts, strict=True):
        if not isinstance(part.value, dict):
            raise CheckpointError(f"{name} holds no mapping of weights")
        value |= part.value
    whole = hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest()
    return Content(value, {}, whole, tuple(name for part in parts for name in part.strange))


def _inside(folder: Path) -> str:
    """What to give in place of a folder."""
    if (folder / ".metadata").is_file() and any(folder.glob("*.distcp")):
        return (
            "; it holds a checkpoint of torch.distributed: make one file of it with `python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {folder} weights.pth`"
        )
    patterns = ("*.index.json", "*.safetensors", "*.pth", "*.pt", "*.ckpt", "*.bin", "*.tar")
    inside = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    return f"; give the file in it, such as {inside[0].name}" if inside else ""


def _refuse_other_archives(path: Path) -> None:
    """torch.save writes zip archives, and so do others."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError):
        return
    last = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in last and any("/code/" in name for name in names):
        raise CheckpointError(
            f"{path.name} is a TorchScript archive, a program and not weights alone; save its weights: "
            f"torch.save(torch.jit.load({path.name!r}).state_dict(), 'weights.pth')"
        )
    if last & {"extern_modules", "archive_format", "serialized_exported_program.json"}:
        raise CheckpointError(f"{path.name} is a packed program (torch.package or torch.export); {REMEDY}")
    if "data.pkl" not in last:
        what = "a NumPy archive" if all(name.endswith(".npy") for name in names) else "a zip archive"
        few = ", ".join(names[:3]) or "nothing"
        raise CheckpointError(
            f"{path.name} is no whole PyTorch checkpoint: {what} that holds {few}; {UNPACK}"
        )


class StandIn:
    """Takes the place of a type that is not weights: nothing of it is run. Its items, if it is a mapping, are
    kept in a plain one, which is all that the safe unpickler puts items into."""

    def __new__(cls, *args: object) -> Any:
        return OrderedDict()


class Opaque:
    """The stand-in for a type whose state is no mapping; forgets it."""

    def __new__(cls, *args: object) -> Opaque:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None: ...


STANDARD = sys.stdlib_module_names | _compat_pickle.IMPORT_MAPPING.keys() | {"builtins", "exceptions"}
STANDARD |= {module for module, _ in _compat_pickle.NAME_MAPPING} | {
    *_compat_pickle.REVERSE_IMPORT_MAPPING.values()
}


def _list(*args: object) -> list[Any]:
    return []


# Plain data of the standard library and of torch; everything is replaced, so that nothing of it is run.
HARMLESS = {
    "argparse": ("Namespace",),
    "types": ("SimpleNamespace",),
    "collections": ("defaultdict",),
    "builtins": (
        "frozenset",
        "range",
        "slice",
        "object",
        "int",
        "float",
        "bool",
        "str",
        "bytes",
        "list",
        "dict",
    ),
    "datetime": ("datetime", "date", "time", "timedelta", "timezone"),
    "decimal": ("Decimal",),
    "fractions": ("Fraction",),
    "uuid": ("UUID",),
    "copyreg": ("_reconstructor",),
    "pathlib": ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path"),
    "pathlib._local": ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path"),
    "numpy": tuple(str(name) for name in np.sctypeDict),
    "numpy.random._pickle": ("__randomstate_ctor", "__bit_generator_ctor"),
}
# numpy's arrays and scalars are rebuilt as they are, by numpy: weights may be arrays
NUMPY: list[Any] = [np.dtype, np.ndarray]
NUMPY += [kind for kind in vars(np.dtypes).values() if isinstance(kind, type)]
NUMPY += [
    (getattr(np._core.multiarray, name), f"numpy.{core}.multiarray.{name}")  # type: ignore[attr-defined]
    for name in ("scalar", "_reconstruct")
    for core in ("core", "_core")
]
NAMES = tuple(f"{module}.{name}" for module, names in HARMLESS.items() for name in names)


def _read_pickle(path: Path) -> tuple[Any, tuple[str, ...]]:
    """(what a torch.save file holds, types unknown here), through torch's unpickler for weights, which calls
    nothing but numpy's and stand-ins."""
    strange: list[str] = []
    stand_in: type = StandIn
    while len(strange) < MAX_UNKNOWN_TYPES:
        allowed = [*NUMPY, (_list, "collections.deque"), *((stand_in, name) for name in (*NAMES, *strange))]
        try:
            with torch.serialization.safe_globals(allowed):
                return torch.load(path, map_location="cpu", weights_only=True), tuple(strange)
        except Exception as error:  # a damaged file can fail in any way
            match = re.search(r"GLOBAL (\S+)", str(error))
            if match and match[1] not in strange and _is_plain_type(match[1]):
                strange.append(match[1])
            elif match:
                raise more_than_weights(path, match[1]) from None
            elif stand_in is StandIn and isinstance(error, TypeError | ValueError | pickle.UnpicklingError):
                stand_in = Opaque  # perhaps a state that is no mapping
            elif strange:
                raise more_than_weights(path, strange[-1]) from None
            else:
                raise CheckpointError(f"{path.name} is no whole PyTorch checkpoint: {_why(error)}") from None
    raise more_than_weights(path, strange[0])


def _is_plain_type(name: str) -> bool:
    """Whether a stand-in may take this type's place: a class by its name, of no library that can do harm.
    Functions and the standard library, Python 2's too, are refused: a file that names them may be hostile."""
    module, _, last = name.rpartition(".")
    top = module.partition(".")[0]
    return bool(top) and last[:1].isupper() and top not in STANDARD


def more_than_weights(path: Path, name: str) -> CheckpointError:
    """For a file with something of the type `name` in it that only running its code could read."""
    return CheckpointError(
        f"{path.name} holds more than weights ({name}); reading that could run code, so it was not read: "
        f"{REMEDY}"
    )


def _why(error: Exception) -> str:
    text = line(error)
    if "Unsupported operand" in text:
        return "it is pickled in a way that the safe reader does not know; save it again with torch.save"
    return text if "weights_only" not in text else "it cannot be read as weights"


def line(error: Exception) -> str:
    """The first line of an error."""
    return (str(error) or type(error).__name__).strip().splitlines()[0][:200]
