"""Looks at an .onnx file without loading it: whether it is whole, and the texts in its metadata.

A file that is cut off, empty, sparse or something else is refused here, before memory is spent on it. What
the texts mean is said by `artifact`; whether the graph runs, by `engine`. Format: protocol buffers' wire
format and `ModelProto` of onnx.proto.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import BadArtifact, EngineFailure

MAX_BYTES = 2**31  # of a protocol buffer; larger models keep their weights outside, which is not served
METADATA_FIELD = 14  # ModelProto.metadata_props
KEY_FIELD, VALUE_FIELD = 1, 2  # of StringStringEntryProto
_VARINT, _BYTES, _FIXED = 0, 2, {1: 8, 5: 4}  # wire types; of fixed length: their bytes
# not the file's fault: memory, open files, a disk or a network that fails
PASSING_ERRNOS = frozenset(
    (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EIO, errno.EAGAIN, errno.ESTALE, errno.ETIMEDOUT)
)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turns what the system says while file `name` is read into BadArtifact, or into EngineFailure where it
    is not the file's fault."""
    try:
        yield
    except MemoryError:
        raise EngineFailure(f"there is not enough memory to read {name}") from None
    except OSError as error:
        kind = EngineFailure if error.errno in PASSING_ERRNOS else BadArtifact
        raise kind(f"cannot read the model file {name}: {error.strerror}") from None


def metadata(path: Path) -> dict[str, str]:
    """The metadata of an ONNX file; BadArtifact for a file that is not one, or not whole."""
    texts: dict[str, str] = {}
    with reading(path.name), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size or size > MAX_BYTES:
            raise BadArtifact(f"{path.name} is not an ONNX file: it has {size} bytes")
        try:
            for number, content in _fields(file, size):
                if number == METADATA_FIELD:
                    file.seek(content.start)
                    entry = {field: _text(file, part) for field, part in _fields(file, content.stop)}
                    texts[entry.get(KEY_FIELD, "")] = entry.get(VALUE_FIELD, "")
        except ValueError:
            raise BadArtifact(f"{path.name} is not an ONNX file, or not whole") from None
    return texts


def _fields(file: BinaryIO, end: int) -> Iterator[tuple[int, range]]:
    """The fields from here to `end`: (number, where its content lies). ValueError where they do not end
    there."""
    at = file.tell()
    while at < end:
        file.seek(at)
        number, wire = divmod(_varint(file), 8)
        if wire == _BYTES:
            length = _varint(file)
        elif wire == _VARINT:
            length = 0
            _varint(file)
        elif wire in _FIXED:
            length = _FIXED[wire]
        else:
            raise ValueError(f"unknown wire type {wire}")
        content = range(file.tell(), file.tell() + length)
        if not number or content.stop > end:
            raise ValueError("no field, or one that ends behind the file")
        yield number, content
        at = content.stop


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("no number")


def _text(file: BinaryIO, content: range) -> str:
    file.seek(content.start)
    return file.read(len(content)).decode("utf-8")
