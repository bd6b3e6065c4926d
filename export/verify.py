"""The exporter's judge: a file passes every check here or is not written.

Structure is read from the graph; numbers come from running the finished file through the server's own
`Engine`, so that what is verified is what is served. Returns what it measured, or raises `VerificationError`
naming the first check that failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from service.engine import Device, Engine

from . import rounding
from .attention_node import OPSET, node_counts
from .errors import VerificationError
from .paca.model import ClusterAttention, PaCaViT
from .paca.segmentation import PaCaSegmenter
from .trace import Normalising, Served, ServedSegmenter

__all__ = ["Verification", "VerificationError", "verify"]
BATCHES = (1, 3, 8)
SIZES = ((0, 0), (32, 64), (96, 32), (1, 6))  # added to (H, W) for dynamic sizes: square, wide, tall, odd
FORBIDDEN = ("Shape", "Einsum", "Erf")  # at fixed size: signs of a graph that computes sizes or lost a fusion
# A trained assignment is sharp: rounding of its scores (tens, so 1e-6) is the relative error of entries near
# 1. Reference parity (1e-6) is a test.
TOLERANCE = {"logits": 2e-5, "assignment": 1e-5, "membership": 1e-5, "tokens": 5e-5, "features": 5e-5}
# k-means, mixtures and DBSCAN amplify rounding without bound where clusters meet: pictures whose assignments
# agree must agree in everything, and most must.
NEAR_TIES = {"logits": 5e-3, "assignment": 1e-3, "membership": 1e-3, "tokens": 2e-2, "features": 2e-2}
NEAR_TIE_PICTURES = 0.5  # of the noise pictures, which are the worst there are; at most


@dataclass(frozen=True)
class Verification:
    """What was checked and measured. difference: per output, max |torch - ONNX Runtime| over all batches,
    relative to max(1, max |torch|); tolerance: what was allowed of it. sizes: (H, W) of the pictures.
    near_ties: share of pictures left out of it because a classic clustering assigned some patch differently;
    0 for learned clusterings."""

    opset: int
    nodes: int
    attention_nodes: int
    softmax_nodes: int
    batches: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    difference: dict[str, float]
    tolerance: dict[str, float]
    near_ties: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """For the manifest, whose table of outputs holds the tolerances."""
        return {name: value for name, value in asdict(self).items() if name != "tolerance"}


def check_structure(
    proto: onnx.ModelProto, blocks: int, clusterings: int, dynamic_size: bool
) -> tuple[int, int, int]:
    """ONNX checker, opset, one Attention node a block, one Softmax a clustering; returns (nodes, attention,
    softmax)."""
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:
        raise VerificationError(
            f"the ONNX checker refuses the graph: {str(error).splitlines()[0]}"
        ) from error
    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset != OPSET:
        raise VerificationError(f"the graph has opset {opset}, it must be {OPSET}")
    counts = node_counts(proto)
    if counts["Attention"] != blocks:
        raise VerificationError(
            f"the graph has {counts['Attention']} Attention nodes for {blocks} blocks; attention was "
            "decomposed or duplicated"
        )
    if counts["Softmax"] != clusterings:
        raise VerificationError(
            f"the graph has {counts['Softmax']} Softmax nodes for {clusterings} clusterings"
        )
    if not dynamic_size and (found := [op for op in FORBIDDEN if counts[op]]):
        raise VerificationError(
            f"the graph has {', '.join(found)} nodes, which a fixed-size graph must not have"
        )
    return sum(counts.values()), counts["Attention"], counts["Softmax"]


def clustering_nets(model: nn.Module) -> list[nn.Module]:
    """The clusterings that blocks own."""
    return [m.clustering for m in model.modules() if isinstance(m, ClusterAttention) and m.owns_clustering]


def softmaxes(model: PaCaViT) -> int:
    """How many Softmax nodes the graph must have: one a clustering, unless a classic one says otherwise, and
    one for a pool with a gate."""
    nets = clustering_nets(model)
    own = model.config.clusterings - len(nets) + sum(getattr(net, "softmaxes", 1) for net in nets)
    return own + (model.config.pool != "mean")


@dataclass(frozen=True)
class Numbers:
    """What `check_numbers` found; members as in `Verification`."""

    difference: dict[str, float]
    tolerance: dict[str, float]
    near_ties: float


def check_numbers(path: Path, model: PaCaViT, explain_stage: int | None, seed: int = 0) -> Numbers:
    """Runs the file at `path` on random pictures at several batches (and sizes, if dynamic) against `model`
    in torch, every output. Raises as `compare` does."""
    reference = Served(model.eval(), "uint8", explain_stage).eval()
    ties = any(getattr(net, "near_ties", False) for net in clustering_nets(model))
    cases = [(batch, 0, 0) for batch in BATCHES]
    if Engine(path, Device("cpu")).manifest.dynamic_size:
        cases += [(2, dh, dw) for dh, dw in SIZES]
    return compare(path, reference, cases, ties=ties, seed=seed)


def compare(
    path: Path,
    reference: Normalising,
    cases: Sequence[tuple[int, int, int]],
    *,
    ties: bool = False,
    seed: int = 0,
) -> Numbers:
    """Runs the file at `path` against `reference` in torch, every output. cases: pictures of a batch, and
    what is added to (H, W). ties: two runtimes may assign a few patches differently.

    Raises VerificationError where a difference exceeds its tolerance, or the share of pictures with
    near-ties, which are left out, its bound.
    """
    engine = Engine(path, Device("cpu"))
    names = reference.output_names
    height, width = engine.manifest.preprocessing.size
    worst, pictures, left_out = dict.fromkeys(names, 0.0), 0, 0
    worst_at: dict[str, np.ndarray] = {}  # the pictures on which each output differs most
    rng = np.random.default_rng(seed)
    for batch, dh, dw in cases:
        images = rng.integers(0, 256, (batch, height + dh, width + dw, 3), np.uint8)
        with torch.no_grad():
            expected = dict(zip(names, (t.numpy() for t in reference(torch.from_numpy(images))), strict=True))
        out = engine.run(images, tuple(names[1:]))
        got = {"logits": out.logits, **out.arrays}
        for name, want in expected.items():
            if got[name].shape != want.shape:
                raise VerificationError(
                    f"output {name} has shape {got[name].shape}, torch gives {want.shape}"
                )
            if not np.isfinite(want).all():
                raise VerificationError(
                    f"the network itself gives non-finite {name}; is the checkpoint damaged?"
                )
            if not np.isfinite(got[name]).all():
                raise VerificationError(
                    f"ONNX Runtime gives non-finite {name} where torch does not; the file is not usable"
                )
        same = np.ones(batch, bool)
        if ties:
            for name in (n for n, role in reference.roles.items() if role == "assignment"):
                same &= (
                    np.abs(got[name] - expected[name]).reshape(batch, -1).max(1) <= NEAR_TIES["assignment"]
                )
        pictures, left_out = pictures + batch, left_out + int((~same).sum())
        for name, want in expected.items():
            difference = (
                float(np.abs(got[name] - want)[same].max() / max(1.0, np.abs(want).max()))
                if same.any()
                else 0.0
            )
            if difference > worst[name]:
                worst[name], worst_at[name] = difference, images
    if left_out > NEAR_TIE_PICTURES * pictures:
        raise VerificationError(
            f"torch and ONNX Runtime assign patches differently in {left_out} of {pictures} pictures, more "
            "than near-ties explain"
        )
    tolerance = {}
    for name, difference in worst.items():
        allowed = (NEAR_TIES if ties else TOLERANCE)[reference.roles[name]]
        if difference > allowed and not ties:
            allowed = max(allowed, rounding.allowance(float32_noise(reference, worst_at[name])[name]))
        if difference > allowed:
            raise VerificationError(
                f"output {name} differs by {difference:.2g} between torch and ONNX Runtime, allowed are "
                f"{allowed:.2g}"
            )
        tolerance[name] = allowed
    return Numbers(worst, tolerance, left_out / pictures)


@torch.no_grad()
def float32_noise(served: Normalising, images: np.ndarray) -> dict[str, float]:
    """How far float32 itself is from float64 in PyTorch, per output: the largest difference relative to
    max(1, max |float64|)."""
    exact = served.exact()
    normalised = (
        torch.from_numpy(images).permute(0, 3, 1, 2).double() * served.scale.double() + served.shift.double()
    )
    pairs = zip(served.output_names, served(torch.from_numpy(images)), exact(normalised), strict=True)
    return {
        name: float((found - true).abs().max() / max(1.0, float(true.abs().max())))
        for name, found, true in pairs
    }


def verify(
    proto: onnx.ModelProto, path: Path, model: PaCaViT, explain_stage: int | None, dynamic_size: bool
) -> Verification:
    """All checks of an fp32 file: `proto` is its content, `path` where it lies for the engine to load."""
    nodes, attention, softmax = check_structure(proto, model.config.blocks, softmaxes(model), dynamic_size)
    found = check_numbers(path, model, explain_stage)
    height, width = (model.config.image_size,) * 2
    sizes = tuple((height + dh, width + dw) for dh, dw in (SIZES if dynamic_size else SIZES[:1]))
    return Verification(OPSET, nodes, attention, softmax, BATCHES, sizes, **vars(found))


def verify_segmenter(proto: onnx.ModelProto, path: Path, model: PaCaSegmenter) -> Verification:
    """As `verify`, of a segmenter: one Attention node a block and one in the head, one Softmax a clustering
    and one in the head, and the numbers of square, wide, tall and odd pictures."""
    config, step = model.config.backbone, model.config.step
    nodes, attention, softmax = check_structure(
        proto, config.blocks + 1, config.clusterings + 1, dynamic_size=True
    )
    sizes = ((0, 0), (0, 2 * step), (step, 0), (1, 6))
    cases = [(1 + i % 2, dh, dw) for i, (dh, dw) in enumerate(sizes)]
    found = compare(path, ServedSegmenter(model.eval(), "uint8").eval(), cases)
    side = config.image_size
    return Verification(
        OPSET,
        nodes,
        attention,
        softmax,
        (1, 2),
        tuple((side + dh, side + dw) for dh, dw in sizes),
        **vars(found),
    )
