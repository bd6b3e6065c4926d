"""An .onnx file looked at without loading it."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import onnx
import onnxruntime
import pytest

from service import onnx_file
from service.errors import BadArtifact, EngineFailure


@pytest.fixture
def model(repository: Path) -> Path:
    return repository / "tiny" / "1" / "model.onnx"


def test_the_metadata_are_those_that_onnx_runtime_reads(model: Path) -> None:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    expected = session.get_modelmeta().custom_metadata_map
    assert onnx_file.metadata(model) == expected
    assert "paca.manifest" in expected


def test_a_text_with_any_signs_and_an_empty_one_come_through(tmp_path: Path) -> None:
    proto = onnx.ModelProto(ir_version=10)
    for key, value in {"names": "Hündin, 猫", "empty": ""}.items():
        proto.metadata_props.add(key=key, value=value)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    assert onnx_file.metadata(tmp_path / "m.onnx") == {"names": "Hündin, 猫", "empty": ""}


@pytest.mark.parametrize("kept", [0, 1, 7, 1000, -1])
def test_a_file_that_is_cut_off_anywhere_is_not_whole(model: Path, kept: int) -> None:
    model.write_bytes(model.read_bytes()[:kept])
    with pytest.raises(BadArtifact, match=r"model\.onnx is not an ONNX file"):
        onnx_file.metadata(model)


@pytest.mark.parametrize("size", [2**31 - 1, 2**40])
def test_holes_cost_no_memory(model: Path, size: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    os.truncate(model, size)
    with pytest.raises(BadArtifact):
        onnx_file.metadata(model)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.EACCES, "Permission denied"), BadArtifact),
        (OSError(errno.EIO, "Input/output error"), EngineFailure),
        (OSError(errno.EMFILE, "Too many open files"), EngineFailure),
        (MemoryError(), EngineFailure),
    ],
)
def test_what_is_not_the_files_fault_is_told_apart(error: Exception, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"model\.onnx"), onnx_file.reading("model.onnx"):
        raise error
