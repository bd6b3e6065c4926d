"""Text files as people have them, whatever the machine's locale: UTF-8 with or without a byte-order mark in,
whole files out.

Everything written goes beside its place first and is renamed, so that a kill never leaves half a file where
the next call looks for a whole one.
"""

from __future__ import annotations

import codecs
import json
import os
from pathlib import Path
from typing import Any

# what a first few bytes say of a text; UTF-32 stands before UTF-16, whose mark begins its own
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode_text(data: bytes) -> str:
    """Bytes → text without its byte-order mark; UTF-8 where no mark says otherwise. Raises
    UnicodeDecodeError."""
    return data.decode(next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8"))


def read_text(path: Path) -> str:
    """The text in `path`. Raises OSError, or UnicodeDecodeError (a ValueError) for what is no text."""
    return decode_text(path.read_bytes())


def read_json(path: Path) -> Any:
    """The JSON value in `path`; None where there is no such file, or only a damaged or half-written one."""
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError, RecursionError):
        return None


def write_text(path: Path, text: str) -> None:
    """`text` as UTF-8, written beside `path` and renamed; makes the folder where there is none. A name from
    the file system that is no Unicode keeps its bytes."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON that people can read."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_bytes(path: Path, data: bytes) -> None:
    """`data`, written beside `path` and renamed; into what is no file, such as /dev/stdout, directly."""
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    path = Path(os.path.realpath(path))  # a link stays one
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
