"""Models that travel to a borrowed GPU without their weights come out whole, and pass their own self-test."""

from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np

from benchmarks.gpu.pack import freeze, thaw
from service.engine import Device, Engine


def test_a_model_is_thawed_into_one_that_serves(tiny_repository: Path, tmp_path: Path) -> None:
    model = tiny_repository / "tiny" / "1" / "model.onnx"
    freeze(model, tmp_path / "frozen.onnx")
    small, whole = (len(lzma.compress(path.read_bytes())) for path in (tmp_path / "frozen.onnx", model))
    assert small < whole
    thaw(tmp_path / "frozen.onnx", tmp_path / "tiny" / "1" / "model.onnx")
    engine = Engine(tmp_path / "tiny" / "1" / "model.onnx", Device("cpu"))
    engine.self_test()
    original = Engine(model, Device("cpu"))
    assert engine.outputs == original.outputs
    batch = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    assert not np.array_equal(engine.run(batch).logits, original.run(batch).logits)
