"""ONNX Runtime's real CUDA provider on a machine without a GPU (kit/README.md): what it places, dispatches,
counts and does when the device fails. Run by `make cuda-check`, which sets INERT_CUDA; no number that a model
returns here means anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

LIBRARIES = os.environ.get("INERT_CUDA", "")  # what kit/build.py made
KIT = Path(__file__).parent / "kit"
ROOT = Path(__file__).parents[2]
collect_ignore_glob = [] if LIBRARIES else ["test_*.py"]


def inert_environment() -> dict[str, str]:
    """The environment of a process that loads the kit: this checkout and the kit can be imported."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(KIT), *sys.path])}


def in_inert_process(code: str, *args: object, sm: int = 90) -> Any:
    """Runs Python code over the inert libraries, in a process of its own; gives the JSON that it prints last.

    The code finds `inert`, `ort` and its arguments as `args`. sm: compute capability, 75 is SM 7.5."""
    prelude = (
        "import json, os, sys, inert\n"
        f"ort = inert.load(os.environ['INERT_CUDA'], {sm})\nargs = sys.argv[1:]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", prelude + code, *map(str, args)],
        env=inert_environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def falling_model(tmp_path: Path) -> Path:
    """A model whose node `falls` is made to fall to the CPU: CUDA has no kernel for Det."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 4, 4])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch"])
    nodes = [
        helper.make_node("Relu", ["image"], ["positive"]),
        helper.make_node("Det", ["positive"], ["det"], name="falls"),
        helper.make_node("Relu", ["det"], ["logits"]),
    ]
    graph = helper.make_graph(nodes, "falls", [image], [logits])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"
