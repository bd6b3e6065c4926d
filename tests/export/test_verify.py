"""The judge's tolerance: fixed, unless the network itself cannot tell its numbers better in float32; never
enough to hide a wrong graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export import rounding, verify
from export.paca import PaCaConfig, PaCaViT, StageConfig
from export.pipeline import Format, Source, export_model
from export.trace import Served


@pytest.fixture(scope="module")
def model() -> PaCaViT:
    """Its first clustering has large scores, whose rounding shows in the assignment."""
    torch.manual_seed(1)
    stages = (StageConfig(6, 1, 2, 3), StageConfig(10, 1, 5))
    model = PaCaViT(
        PaCaConfig("sharp", stages, num_classes=3, image_size=32, patch_size=2, resize="stretch", crop=1.0)
    ).eval()
    with torch.no_grad():
        model.stage1[0].attn.clustering.clustering[4].weight *= 30
    return model


@pytest.fixture(scope="module")
def written(model: PaCaViT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sharp") / "model.onnx"
    export_model(Source(model, "sharp", ("a", "b", "c")), out, Format(with_explain=False))
    return out


@pytest.fixture
def _strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tolerance below what float32 can hold for this network."""
    monkeypatch.setitem(verify.TOLERANCE, "assignment", 1e-8)


@pytest.mark.usefixtures("_strict")
def test_differences_no_larger_than_float32s_own_pass(
    model: PaCaViT, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = verify.float32_noise(
        Served(model, "uint8", None).eval(),
        np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8),
    )
    assert 1e-7 < noise["assignment_1"] < 1e-4
    found = verify.check_numbers(written, model, None)
    assert 1e-8 < found.difference["assignment_1"] < found.tolerance["assignment_1"] < rounding.FACTOR * 1e-5
    monkeypatch.setattr(rounding, "FACTOR", 0)
    with pytest.raises(verify.VerificationError, match="assignment_1 differs by"):
        verify.check_numbers(written, model, None)


@pytest.mark.usefixtures("_strict")
def test_noise_does_not_excuse_a_graph_that_is_wrong(model: PaCaViT, written: Path, tmp_path: Path) -> None:
    proto = onnx.load(written)
    name = next(n for n in proto.graph.node if n.op_type == "Conv" and ".clustering" in n.name).input[1]
    (weight,) = (w for w in proto.graph.initializer if w.name == name)
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) + 0.01, weight.name))
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(verify.VerificationError, match="differs by"):
        verify.check_numbers(tmp_path / "model.onnx", model, None)
