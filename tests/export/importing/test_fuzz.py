"""Random small classifiers: wherever "exact" is claimed from their structure, it holds in numbers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from export.importing.run import Request, run
from service import explain
from service.engine import Device, Engine, GradientEngine

from .graphs import CLASSES, SIDE, WIDTH, Net, saved

Step = Callable[
    [Net, int], int
]  # adds to a net whose last axis has so many channels; returns how many it has


def _keep(kind: str) -> Step:
    def step(net: Net, width: int) -> int:
        net.op(kind)
        return width

    return step


def _gemm(net: Net, width: int) -> int:
    wide = int(net.random.integers(2, 9))
    net.gemm(width, wide)
    return wide


def _scaled(net: Net, width: int) -> int:
    net.op("Mul", net.weights(width, scale=1)).op("Add", net.weights(width))
    return width


def _layer_norm(net: Net, width: int) -> int:
    net.layer_norm(width)
    return width


def _gate(net: Net, width: int) -> int:
    net.silu()
    return width


AFFINE: dict[str, Step] = {
    "gemm": _gemm,
    "scaled": _scaled,
    "neg": _keep("Neg"),
    "dropout": _keep("Dropout"),
    "identity": _keep("Identity"),
}
CURVED: dict[str, Step] = {
    "norm": _layer_norm,
    "silu": _gate,
    **{kind.lower(): _keep(kind) for kind in ("Relu", "Tanh", "Sigmoid", "HardSwish", "Abs", "Softmax")},
}
STEPS = {**AFFINE, **CURVED}
POOLS: dict[str, Callable[[Net], Net]] = {
    "global": lambda n: n.trunk().op("GlobalAveragePool").op("Flatten"),
    "reduce": lambda n: n.trunk().op("ReduceMean", axes=[2, 3], keepdims=0),
    "last": lambda n: n.trunk().op("Transpose", perm=[0, 2, 3, 1]).op("ReduceMean", axes=[1, 2], keepdims=0),
    "tokens": lambda n: n.tokens().op("ReduceMean", axes=[1], keepdims=0),
    "class token": lambda n: n.tokens(class_token=True).op("ReduceMean", axes=[1], keepdims=0),
    "padded": lambda n: (
        n.trunk()
        .op("AveragePool", kernel_shape=[10, 10], pads=[1, 1, 1, 1], count_include_pad=1)
        .op("Flatten")
    ),
    "maximum": lambda n: n.trunk().op("GlobalMaxPool").op("Flatten"),
    "rows": lambda n: n.trunk().op("ReduceMean", axes=[2], keepdims=0).op("ReduceMean", axes=[2], keepdims=0),
    "channels": lambda n: n.trunk().op("ReduceMean", axes=[1], keepdims=0).op("Flatten").gemm(64, WIDTH),
}


@settings(max_examples=60, deadline=None)
@given(
    pool=st.sampled_from(sorted(POOLS)),
    steps=st.lists(st.sampled_from(sorted(STEPS)), max_size=4),
    softmax=st.booleans(),
    seed=st.integers(0, 99),
)
def test_exact_is_never_claimed_wrongly(pool: str, steps: list[str], softmax: bool, seed: int) -> None:
    net = POOLS[pool](Net(seed))
    width = WIDTH
    for name in steps:
        width = STEPS[name](net, width)
    net.gemm(width)
    if softmax:
        net.op("Softmax", axis=1)
    with tempfile.TemporaryDirectory() as folder:
        path = saved(net.model(), Path(folder))
        report = run(Request(source=path, out=Path(folder) / "toy" / "1" / "model.onnx"))
        assert "the parts miss the logits" not in report.end.reason, "the structure was read wrongly"
        assert "finite differences" not in report.end.reason, "a rule of the gradients is wrong"
        linear = pool not in ("class token", "padded", "maximum", "rows", "channels")
        if linear and not set(steps) & set(CURVED):
            assert report.end.head == "linear"
        if report.end.head == "none":
            return
        engine = Engine(report.path, Device("cpu"))
        picture = np.random.default_rng(seed).integers(0, 256, (1, SIDE, SIDE, 3), np.uint8)
        if report.end.head == "linear":
            assert engine.head
            out = engine.run(picture, ("tokens",)).row(0)
            for target in range(CLASSES):
                weights = explain.class_weights(CLASSES, target)
                cam = explain.contributions(out.arrays["tokens"], (8, 8), engine.head, weights)
                assert abs(explain.completeness(cam, engine.head, weights, out.logits).residual) <= 1e-4
        else:
            GradientEngine(report.path.with_name("explain.onnx"), Device("cpu")).self_test(engine)
