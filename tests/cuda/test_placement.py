"""Where ONNX Runtime puts each node of what we export: all that computes on CUDA, no copies in between, and
the attention kernel that the precision allows. Proven by its own log; that the kernels are right is not."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import onnx
import pytest

from tests.cuda.artifacts import ARTIFACTS, CLASSIFIERS, SEGMENTER, Artifact
from tests.cuda.conftest import KIT, in_inert_process

PLACE = """
from service.session import DISABLED_OPTIMIZERS
from service.providers import PROVIDERS
options = dict(PROVIDERS["cuda"].options(0))
placed = inert.placement(args[0], options, DISABLED_OPTIMIZERS)
print(json.dumps([placed.nodes, placed.memcpy, placed.cpu_nodes]))
"""
ATTEND = """
import numpy as np
from service.session import DISABLED_OPTIMIZERS
session = ort.InferenceSession(args[0], providers=["CUDAExecutionProvider", "CPUExecutionProvider"],
                               disabled_optimizers=DISABLED_OPTIMIZERS, enable_fallback=0)
side = session.get_inputs()[0].shape[1]
feed = {"image": np.zeros((2, side, side, 3), np.uint8)}
print(json.dumps(dict(inert.attention_kernels(session, lambda s: s.run(["logits"], feed)))))
"""
CUDA = "CUDAExecutionProvider"
# Arithmetic of sizes is on the CPU by design. The same operators on pictures would need copies, which count.
OF_SHAPES = ("Add", "Concat", "Div", "Mul", "Reshape", "Squeeze")
# by compute capability; SM 7.5 (T4) has no flash attention
KERNELS = {
    "fp32": {90: "Memory Efficient Attention"},
    "fp16": {90: "Flash Attention", 75: "Memory Efficient Attention"},
}
each_classifier = pytest.mark.parametrize("artifact", CLASSIFIERS, ids=lambda artifact: artifact.name)
each_artifact = pytest.mark.parametrize("artifact", ARTIFACTS, ids=lambda artifact: artifact.name)


def problems(placed: list) -> list[str]:
    """What is wrong with a placement: nodes on the CPU that compute, and copies between CPU and device."""
    nodes, memcpy, on_cpu = placed
    found = [f"on the CPU: {node}" for node in on_cpu if node.split()[0] not in OF_SHAPES]
    if memcpy:
        found.append(f"{memcpy} copies between CPU and device")
    if not nodes.get(CUDA):
        found.append("nothing runs on CUDA")
    return found


@each_artifact
def test_every_node_of_a_model_is_on_cuda(artifact: Artifact) -> None:
    placed = in_inert_process(PLACE, artifact.model)
    assert problems(placed) == []
    assert artifact == SEGMENTER or set(placed[0]) == {CUDA}  # it computes with the sizes of pictures


@each_classifier
def test_every_node_of_the_gradients_that_computes_is_on_cuda(artifact: Artifact) -> None:
    assert problems(in_inert_process(PLACE, artifact.model.with_name("explain.onnx"))) == []


@each_classifier
def test_attention_runs_in_the_kernel_that_precision_and_card_allow(artifact: Artifact) -> None:
    nodes = onnx.load(artifact.model, load_external_data=False).graph.node
    attention = sum(node.op_type == "Attention" for node in nodes)
    for sm, kernel in KERNELS[artifact.precision].items():
        assert in_inert_process(ATTEND, artifact.model, sm=sm) == {kernel: attention}


@each_artifact
def test_the_static_check_agrees(artifact: Artifact) -> None:
    place = _place()
    beside = artifact.model.with_name("explain.onnx")
    for path in (artifact.model, *([beside] if beside.exists() else [])):
        assert place.place(path, place.Provider()).on_cpu == []


def test_a_graph_made_to_fall_to_the_cpu_is_caught(falling_model: Path) -> None:
    """The check of this check."""
    found = problems(in_inert_process(PLACE, falling_model))
    assert "on the CPU: Det (falls)" in found
    assert any("copies between CPU and device" in problem for problem in found)
    place = _place()
    static = place.place(falling_model, place.Provider())
    assert [operator for operator, _, _ in static.on_cpu] == ["Det"]


def _place() -> ModuleType:
    sys.path.insert(0, str(KIT))
    try:
        return importlib.import_module("place")
    finally:
        sys.path.remove(str(KIT))
