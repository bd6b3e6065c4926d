"""The exporter's judge: a file passes every check here or is not written.

Structure is read from the graph; numbers come from running the finished file through the server's own `Engine`, so that what is verified is what
is served. Returns what it measured, or raises `VerificationError` naming the first check that failed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import torch

from service.engine import Device, Engine

from .attention_node import OPSET, node_counts
from .paca.model import PaCaViT
from .trace import Served

BATCHES = (1, 3, 8)
SIZES = ((0, 0), (32, 64), (96, 32), (1, 6))  # added to (H, W) for dynamic sizes: square, wide, tall, odd
FORBIDDEN = ("Shape", "Einsum", "Erf")  # at fixed size: signs of a graph that computes sizes or lost a fusion
# A trained assignment is sharp: rounding of its scores (tens, so 1e-6) is the relative error of entries near 1. Reference parity (1e-6) is a test.
TOLERANCE = {"logits": 2e-5, "assignment": 1e-5, "tokens": 5e-5, "features": 5e-5}
TEACHER_TOKENS = 2e-4  # the teacher's BatchNorms amplify rounding


class VerificationError(Exception):
    """The exported graph is not what it should be; nothing was written."""


@dataclass(frozen=True)
class Verification:
    """What was checked and measured. difference: per output, max |torch - ONNX Runtime| over all batches, relative to max(1, max |torch|)."""

    opset: int
    nodes: int
    attention_nodes: int
    softmax_nodes: int
    batches: tuple[int, ...]
    difference: dict[str, float]

    def to_dict(self) -> dict:
        return asdict(self)


def check_structure(proto: onnx.ModelProto, blocks: int, clusterings: int, dynamic_size: bool) -> tuple[int, int, int]:
    """ONNX checker, opset, one Attention node a block, one Softmax a clustering; returns (nodes, attention, softmax)."""
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:
        raise VerificationError(f"the ONNX checker refuses the graph: {str(error).splitlines()[0]}") from error
    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset != OPSET:
        raise VerificationError(f"the graph has opset {opset}, it must be {OPSET}")
    counts = node_counts(proto)
    if counts["Attention"] != blocks:
        raise VerificationError(f"the graph has {counts['Attention']} Attention nodes for {blocks} blocks; attention was decomposed or duplicated")
    if counts["Softmax"] != clusterings:
        raise VerificationError(f"the graph has {counts['Softmax']} Softmax nodes for {clusterings} clusterings")
    if not dynamic_size and (found := [op for op in FORBIDDEN if counts[op]]):
        raise VerificationError(f"the graph has {', '.join(found)} nodes, which a fixed-size graph must not have")
    return sum(counts.values()), counts["Attention"], counts["Softmax"]


def check_numbers(path: Path, model: PaCaViT, explain_stage: int | None, seed: int = 0) -> dict[str, float]:
    """Runs the file at `path` on random pictures at several batches (and sizes, if dynamic) against `model` in torch, every output.

    Returns the largest difference per output relative to max(1, max |torch|); raises where one exceeds its tolerance.
    """
    engine = Engine(path, Device("cpu"))
    reference = Served(model.eval(), "uint8", explain_stage).eval()
    names = reference.output_names
    height, width = engine.manifest.preprocessing.size
    worst = dict.fromkeys(names, 0.0)
    rng = np.random.default_rng(seed)
    cases = [(batch, 0, 0) for batch in BATCHES]
    if engine.manifest.dynamic_size:
        cases += [(2, dh, dw) for dh, dw in SIZES]
    for batch, dh, dw in cases:
        images = rng.integers(0, 256, (batch, height + dh, width + dw, 3), np.uint8)
        with torch.no_grad():
            expected = [t.numpy() for t in reference(torch.from_numpy(images))]
        out = engine.run(images, tuple(names[1:]))
        for name, want in zip(names, expected, strict=True):
            got = out.logits if name == "logits" else out.arrays[name]
            if got.shape != want.shape:
                raise VerificationError(f"output {name} has shape {got.shape}, torch gives {want.shape}")
            if not np.isfinite(want).all():
                raise VerificationError(f"the network itself gives non-finite {name}; is the checkpoint damaged?")
            worst[name] = max(worst[name], float(np.abs(got - want).max() / max(1.0, np.abs(want).max())))
    for name, difference in worst.items():
        kind = name.split("_")[0]
        allowed = TEACHER_TOKENS if model.config.teacher_depths and kind in ("tokens", "features") else TOLERANCE[kind]
        if not difference <= allowed:
            raise VerificationError(f"output {name} differs by {difference:.2g} between torch and ONNX Runtime, allowed are {allowed:.0e}")
    return worst


def verify(proto: onnx.ModelProto, path: Path, model: PaCaViT, explain_stage: int | None, dynamic_size: bool) -> Verification:
    """All checks of an fp32 file: `proto` is its content, `path` where it lies for the engine to load."""
    nodes, attention, softmax = check_structure(proto, model.config.blocks, model.config.clusterings, dynamic_size)
    difference = check_numbers(path, model, explain_stage)
    return Verification(OPSET, nodes, attention, softmax, BATCHES, difference)
