"""Smaller number formats: which pictures calibrate and which judge, what stays in float, and what is said
where 8 bits lose too much."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from export import quantise
from export.attention_node import node_counts
from export.paca import PaCaConfig, PaCaViT, StageConfig
from export.pictures import Calibration
from export.quantise import QuantisationError, logits, quantisable, to_fp16, to_int8, unjudged, with_gelus
from export.trace import trace

CONFIG = PaCaConfig(
    "toy",
    (StageConfig(8, 1, 2, 3), StageConfig(12, 2, 3)),
    num_classes=3,
    image_size=32,
    patch_size=2,
    resize="stretch",
    crop=1.0,
)
SENSITIVE = "stage2.1.mlp"


def network(head: float = 2.0) -> PaCaViT:
    torch.manual_seed(1)
    model = PaCaViT(CONFIG).eval()
    torch.nn.init.normal_(model.head.weight, std=head)
    return model


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """(40, 32, 32, 3): smooth blobs of colour."""
    rng = np.random.default_rng(2)
    coarse = rng.integers(0, 256, (40, 4, 4, 3), np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(c).resize((32, 32), Image.Resampling.BICUBIC)) for c in coarse]
    )


@pytest.fixture(scope="module")
def graph() -> onnx.ModelProto:
    """A network in which one layer is made hard for 8 bits: one channel is 300 times larger and its weights
    as much smaller, so nothing else changes."""
    model = network()
    harden(model.stage2[1].norm2_before, model.stage2[1].mlp.fc1, 300)
    model.stage2[1].mlp.fc2.weight.data *= 20
    return trace(model)


@torch.no_grad()
def harden(norm: torch.nn.LayerNorm, reader: torch.nn.Linear, factor: float) -> None:
    """One channel outgrows the others and leaves them few of the 8 bits."""
    norm.weight[0] *= factor
    norm.bias[0] *= factor
    reader.weight[:, 0] /= factor


@pytest.fixture(scope="module")
def found(graph: onnx.ModelProto, pictures: np.ndarray) -> quantise.Int8:
    return to_int8(graph, halves(pictures))


def halves(pictures: np.ndarray, labels: np.ndarray | None = None) -> Calibration:
    """Every second one calibrates, the others judge."""
    return Calibration(pictures[::2], pictures[1::2], labels)


def scales(model: onnx.ModelProto) -> dict[str, float]:
    """The measured range of every activation in 8 bits."""
    values = {w.name: onnx.numpy_helper.to_array(w) for w in model.graph.initializer}
    return {
        n.input[0]: float(values[n.input[1]])
        for n in model.graph.node
        if n.op_type == "QuantizeLinear" and values[n.input[1]].ndim == 0
    }


def floats(model: onnx.ModelProto) -> set[str]:
    """Modules whose convolutions and matrix products read their inputs in float."""
    eight_bit = {o for n in model.graph.node if n.op_type == "DequantizeLinear" for o in n.output}
    return {
        n.name.split("/")[0]
        for n in model.graph.node
        if n.op_type in ("Conv", "MatMul", "Gemm") and n.input[0] not in eight_bit
    }


def test_only_the_pictures_that_calibrate_set_the_ranges(
    found: quantise.Int8, graph: onnx.ModelProto, pictures: np.ndarray
) -> None:
    assert (found.calibrated, found.judged) == (20, 20)
    others = pictures.copy()
    others[1::2] = others[1::2][::-1]
    again = to_int8(graph, halves(others))
    assert scales(again.model) == scales(found.model)
    assert len(scales(found.model)) > 10


def test_agreement_is_what_the_file_gives_on_the_pictures_it_was_not_calibrated_on(
    found: quantise.Int8, graph: onnx.ModelProto, pictures: np.ndarray
) -> None:
    same = logits(found.model, pictures[1::2]).argmax(1) == logits(graph, pictures[1::2]).argmax(1)
    assert found.agreement == same.mean() >= 0.99


def test_labels_say_what_accuracy_is_lost(graph: onnx.ModelProto, pictures: np.ndarray) -> None:
    named = logits(graph, pictures[1::2]).argmax(1)
    found = to_int8(graph, halves(pictures, named))
    assert found.points_lost == pytest.approx(100 * (1 - found.agreement))
    assert to_int8(graph, halves(pictures)).points_lost is None


def test_what_loses_too_much_accuracy_is_not_written(
    graph: onnx.ModelProto, pictures: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantise, "MOST_POINTS_LOST", -1.0)
    with pytest.raises(QuantisationError, match=r"int8 loses 0\.0 points, -1\.0 are allowed"):
        to_int8(graph, halves(pictures, logits(graph, pictures[1::2]).argmax(1)))


def test_gelu_is_in_8_bits_too_where_the_answers_stay_the_same(
    found: quantise.Int8, graph: onnx.ModelProto, pictures: np.ndarray
) -> None:
    assert 0 < found.gelus == node_counts(found.model)["Sigmoid"]
    assert node_counts(found.model)["Gelu"] == node_counts(graph)["Gelu"] - found.gelus
    expected = logits(graph, pictures)
    off = np.sqrt(np.mean((logits(found.model, pictures) - expected) ** 2))
    assert off < 0.05 * expected.std()


def test_gelu_stays_in_float_where_they_would_not(
    graph: onnx.ModelProto, pictures: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
        copy, count = with_gelus(model)
        (head,) = (node for node in copy.graph.node if "logits" in node.output)
        for weight in copy.graph.initializer:
            if weight.name == head.input[1]:
                values = onnx.numpy_helper.to_array(weight)
                weight.CopyFrom(onnx.numpy_helper.from_array(1.1 * values, weight.name))  # the same classes
        return copy, count

    monkeypatch.setattr(quantise, "with_gelus", spoilt)
    found = to_int8(graph, halves(pictures))
    assert (found.gelus, node_counts(found.model)["Sigmoid"]) == (0, 0)


def test_8_bit_gelus_become_a_table_in_onnx_runtime(found: quantise.Int8, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(found.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    counts = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert counts["QLinearSigmoid"] == counts["QLinearMul"] == found.gelus


def test_unjudged_even_the_layer_that_hurts_is_in_8_bits(
    graph: onnx.ModelProto, pictures: np.ndarray
) -> None:
    reduced = unjudged(graph, pictures[:8])
    assert not any(module.startswith(SENSITIVE) for module in floats(reduced))
    assert node_counts(reduced)["Sigmoid"] > 0


def test_the_layer_that_hurts_stays_in_float_and_its_neighbours_do_not(found: quantise.Int8) -> None:
    assert next(iter(found.errors)) == SENSITIVE
    assert SENSITIVE in found.kept_float
    assert len(found.kept_float) <= len(found.errors) / 2
    left = floats(found.model)
    assert any(module.startswith(SENSITIVE) for module in left)
    assert not any(module.startswith("stage2.0.mlp") for module in left)


def test_nothing_stays_in_float_without_need(pictures: np.ndarray) -> None:
    found = to_int8(trace(network()), halves(pictures))
    assert max(found.errors.values()) < 0.05
    assert found.kept_float == ()


def test_attention_pooling_norms_stem_and_head_stay_in_float(
    found: quantise.Int8, graph: onnx.ModelProto
) -> None:
    before, after = node_counts(graph), node_counts(found.model)
    assert all(after[kind] == before[kind] for kind in ("Attention", "LayerNormalization", "Softmax"))
    for part in ("head", "patch_embed"):
        assert any(module.startswith(part) for module in floats(found.model))
        assert not any(module.startswith(part) for module in quantisable(graph))
    constants = {w.name for w in graph.graph.initializer}
    pooling = [n.name for n in graph.graph.node if n.op_type == "MatMul" and n.input[1] not in constants]
    assert len(pooling) == 1
    assert not set(pooling) & {name for names in quantisable(graph).values() for name in names}


def test_too_few_pictures_are_refused(graph: onnx.ModelProto, pictures: np.ndarray) -> None:
    with pytest.raises(QuantisationError, match="at least 32 pictures to calibrate and to judge, not 31"):
        to_int8(graph, halves(pictures[:31]))


def test_disagreement_ends_in_exit_code_1_and_the_layers_that_hurt(
    tmp_path: Path, pictures: np.ndarray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import save_file

    from service import cli

    model = network()
    save_file(
        model.state_dict(),
        tmp_path / "w.safetensors",
        {"paca.config": json.dumps(CONFIG.to_dict()), "paca.labels": '["a", "b", "c"]'},
    )
    (tmp_path / "photos").mkdir()
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / "photos" / f"{i}.png")
    out = tmp_path / "out" / "model.int8.onnx"
    arguments = [
        "export",
        "auto",
        "-c",
        tmp_path / "w.safetensors",
        "--precision",
        "int8",
        "--calibration",
        tmp_path / "photos",
        "-o",
        out,
    ]
    monkeypatch.setattr(
        "export.pipeline.explain_stage", lambda model: None
    )  # its tracing takes seconds and has its own tests
    monkeypatch.setattr("sys.argv", ["paca", *map(str, arguments)])
    monkeypatch.setattr(quantise, "AGREEMENT", 1.01)  # more than any choice of layers can reach
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "int8 and fp32 agree on" in last
    assert "101 % are needed" in last
    assert "stage1.0" in last or "stage2." in last
    assert list(out.parent.iterdir()) == []


def test_float16_keeps_types_outside_and_fused_attention_inside(
    graph: onnx.ModelProto, pictures: np.ndarray
) -> None:
    half = to_fp16(graph)
    assert [v.type.tensor_type.elem_type for v in (*half.graph.input, *half.graph.output)] == [
        v.type.tensor_type.elem_type for v in (*graph.graph.input, *graph.graph.output)
    ]
    assert node_counts(half)["Attention"] == node_counts(graph)["Attention"]
    assert node_counts(half)["Cast"] == len(half.graph.output) + 1  # one at the picture, one at each answer
    np.testing.assert_allclose(logits(half, pictures), logits(graph, pictures), atol=0.05)
