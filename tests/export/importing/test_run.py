"""A foreign file becomes a verified artifact, or one line says why not and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from export.errors import ExportError
from export.finish import Format
from export.importing.cli import import_model
from export.importing.linearise import MAP
from export.importing.run import Request, Sight, run
from service import explain
from service.engine import Device, Engine, GradientEngine

from .graphs import CLASSES, FIRST_ORDER, FLOAT, INT64, LINEAR, NO_HEAD, SIDE, UINT8, WIDTH, Net, saved

CPU = Device("cpu")


def imported(model: onnx.ModelProto, folder: Path, **how: Any) -> Engine:
    run(Request(source=saved(model, folder), out=folder / "toy" / "1" / "model.onnx", **how))
    return Engine(folder / "toy" / "1" / "model.onnx", CPU)


def gap(net: Net | None = None) -> Net:
    return LINEAR["global pool, Gemm"](net or Net())


@pytest.mark.parametrize("build", LINEAR.values(), ids=LINEAR.keys())
def test_contributions_and_bias_are_the_logit_where_exact_is_claimed(
    build: Callable[[Net], Net], tmp_path: Path
) -> None:
    engine = imported(build(Net()).model(), tmp_path)
    assert engine.manifest.head == "linear"
    assert engine.head
    picture = np.random.default_rng(5).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    out = engine.run(picture, ("tokens",)).row(1)
    for target in range(CLASSES):
        weights = explain.class_weights(CLASSES, target)
        cam = explain.contributions(out.arrays["tokens"], (8, 8), engine.head, weights)
        account = explain.completeness(cam, engine.head, weights, out.logits)
        assert abs(account.residual) <= 1e-4


@pytest.mark.parametrize("build", FIRST_ORDER.values(), ids=FIRST_ORDER.keys())
def test_the_map_of_first_order_is_the_slope_of_the_logit(
    build: Callable[[Net], Net], tmp_path: Path
) -> None:
    engine = imported(build(Net()).model(), tmp_path)
    manifest = engine.manifest
    assert (manifest.head, manifest.explain.maps, engine.head) == ("first_order", (1,), None)
    assert manifest.verification["slopes"] <= 2e-2
    gradients = GradientEngine(tmp_path / "toy" / "1" / "explain.onnx", CPU)
    gradients.self_test(engine)
    pictures = np.random.default_rng(5).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    features = engine.run(pictures, ("features",)).arrays["features"]
    maps = gradients.run(features, np.eye(CLASSES, dtype=np.float32)[:2])[MAP]
    assert maps.shape == (2, 8, 8)
    assert np.abs(maps).max() > 0


@pytest.mark.parametrize("build", [row[0] for row in NO_HEAD.values()], ids=NO_HEAD.keys())
def test_without_a_mean_only_the_logits_are_served(build: Callable[[Net], Net], tmp_path: Path) -> None:
    engine = imported(build(Net()).model(), tmp_path)
    assert (engine.manifest.head, list(engine.outputs), engine.manifest.stages) == ("none", ["logits"], ())


def as_it_came(path: Path, fed: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": fed})[0])


def test_the_file_answers_bytes_as_the_original_answers_numbers(tmp_path: Path) -> None:
    engine = imported(gap().model(), tmp_path, sight=Sight(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)))
    picture = np.random.default_rng(1).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    fed = (picture / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    expected = as_it_came(tmp_path / "toy.onnx", fed.transpose(0, 3, 1, 2).astype(np.float32))
    np.testing.assert_allclose(engine.run(picture).logits, expected, atol=1e-4)


def test_channels_last_and_bytes_are_taken_as_they_are(tmp_path: Path) -> None:
    net = Net().op("Cast", to=FLOAT).op("Transpose", perm=[0, 3, 1, 2])
    net.op("Div", net.constant(np.array(255.0)))
    engine = imported(gap(net).model(shape=("N", SIDE, SIDE, 3), kind=UINT8), tmp_path)
    picture = np.random.default_rng(1).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    np.testing.assert_allclose(
        engine.run(picture).logits, as_it_came(tmp_path / "toy.onnx", picture), atol=1e-4
    )
    assert engine.manifest.preprocessing.mean == (0, 0, 0)


def test_a_fixed_batch_is_freed_where_the_graph_allows(tmp_path: Path) -> None:
    net = Net().trunk().op("AveragePool", kernel_shape=[8, 8])
    net.op("Reshape", net.constant(np.array([1, WIDTH]))).gemm()
    engine = imported(net.model(shape=(1, 3, SIDE, SIDE), out=(1, CLASSES)), tmp_path)
    assert engine.max_batch is None
    assert engine.manifest.verification["batches"] == [1, 3, 8]


def test_where_it_does_not_the_file_runs_one_picture_at_a_time_and_says_so(tmp_path: Path) -> None:
    net = Net().trunk()
    net.op("Concat", net.weights(1, WIDTH, 8, 8), axis=3)
    net.op("ReduceMean", axes=[2, 3], keepdims=0).gemm()
    path = saved(net.model(shape=(1, 3, SIDE, SIDE), out=(1, CLASSES)), tmp_path)
    report = run(Request(source=path, out=tmp_path / "toy" / "1" / "model.onnx"))
    assert any("one picture at a time" in note for note in report.notes)
    assert Engine(report.path, CPU).max_batch == 1
    smaller = Request(source=path, out=tmp_path / "2" / "model.fp16.onnx", format=Format(precision="fp16"))
    with pytest.raises(ExportError, match=r"one picture at a time, .* keep fp32"):
        run(smaller)


def test_weights_that_old_files_list_as_inputs_are_no_inputs(tmp_path: Path) -> None:
    assert imported(gap(Net(opset=9)).model(listed=True), tmp_path).manifest.head == "linear"


def test_a_very_old_opset_is_raised(tmp_path: Path) -> None:
    net = Net(opset=6).trunk().op("GlobalAveragePool")
    net.op("Reshape", net.constant(np.array([-1, WIDTH]))).op("MatMul", net.weights(WIDTH, CLASSES))
    assert imported(net.model(), tmp_path).manifest.opset == 13


def test_external_data_comes_into_the_file(tmp_path: Path) -> None:
    onnx.save(gap().model(), tmp_path / "toy.onnx", save_as_external_data=True, size_threshold=0)
    run(Request(source=tmp_path / "toy.onnx", out=tmp_path / "toy" / "1" / "model.onnx"))
    onnx.load(tmp_path / "toy" / "1" / "model.onnx", load_external_data=False).graph.initializer[0].raw_data[
        0
    ]
    for tensor in onnx.load(tmp_path / "toy" / "1" / "model.onnx").graph.initializer:
        assert tensor.data_location == onnx.TensorProto.DEFAULT


def test_all_files_of_the_same_weights_belong_together(tmp_path: Path) -> None:
    engine = imported(gap().model(), tmp_path)
    request = Request(
        source=tmp_path / "toy.onnx",
        out=tmp_path / "toy" / "1" / "model.fp16.onnx",
        format=Format(precision="fp16"),
    )
    assert run(request).manifest.weights_id == engine.manifest.weights_id
    with pytest.raises(ExportError, match="was made from other weights"):
        imported(gap(Net(seed=1)).model(), tmp_path)


def test_the_command_prints_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb\nc\nd\ne\n")
    import_model(
        saved(gap().model(), tmp_path),
        labels=str(labels),
        mean="0,0,0",
        std="1,1,1",
        out=tmp_path / "birds" / "3" / "model.onnx",
    )
    report = json.loads(capsys.readouterr().out)
    assert (report["name"], report["classes"]) == ("birds", CLASSES)
    assert report["explained"] == "exact: mean over 8 x 8 places, then Gemm"


def two_inputs() -> onnx.ModelProto:
    model = gap().model()
    model.graph.input.append(helper.make_tensor_value_info("ids", INT64, ("N", 4)))
    return model


def two_outputs() -> onnx.ModelProto:
    model = gap().model()
    model.graph.output.append(helper.make_tensor_value_info("t0", FLOAT, None))
    return model


def text() -> onnx.ModelProto:
    net = Net().op("Cast", to=FLOAT)
    net.op("MatMul", net.weights(16, CLASSES))
    return net.model(shape=("N", 16), kind=INT64)


def unknown_operator() -> onnx.ModelProto:
    net = gap()
    net.nodes.append(helper.make_node("Wonder", [net.at], ["w"], domain="my.own"))
    net.at = "w"
    model = net.model()
    model.opset_import.append(helper.make_opsetid("my.own", 1))
    return model


def quantised() -> onnx.ModelProto:
    net = gap()
    scale, zero = net.constant(np.array(0.1, np.float32)), net.constant(np.array(0, np.uint8))
    return net.op("QuantizeLinear", scale, zero).op("DequantizeLinear", scale, zero).model()


def half() -> onnx.ModelProto:
    model = gap().model()
    weight = model.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), weight.name))
    return model


def not_finite() -> onnx.ModelProto:
    net = gap()
    return net.op("Mul", net.constant(np.array(np.inf))).model()


REFUSALS: dict[str, tuple[Callable[[], onnx.ModelProto], dict, str]] = {
    "two inputs": (two_inputs, {}, r"2 inputs \(x, ids\), one picture is expected; cut .*extract_model"),
    "two outputs": (two_outputs, {}, r"2 outputs .*only class scores are expected; keep them alone"),
    "text": (text, {}, "int64 with 2 axes, not a batch of pictures .*; only image classifiers"),
    "grey": (lambda: gap().model(shape=("N", 1, SIDE, SIDE)), {}, "1 channels .* but pictures have 3"),
    "a map": (lambda: Net().trunk().model(out=("N", WIDTH, 8, 8)), {}, "not one score a class"),
    "labels": (
        lambda: gap().op("Sigmoid").model(),
        {},
        "ends in Sigmoid, .* export a model that ends in class",
    ),
    "foreign operator": (unknown_operator, {}, "ONNX Runtime cannot load the file .* standard operators"),
    "quantised": (quantised, {}, "quantised already; import the float file"),
    "half": (half, {}, "computes in 16 bits; import the float32 file"),
    "not finite": (not_finite, {}, "not finite; is it damaged"),
    "no size": (lambda: gap().model(shape=("N", 3, "h", "w")), {}, "picture's size free; give it"),
    "another size": (
        lambda: gap().model(),
        {"sight": Sight(size=64)},
        "fixes pictures of 32 x 32; leave out",
    ),
    "preset": (lambda: gap().model(), {"sight": Sight(preset="caffe")}, "choose one of: imagenet, inception"),
    "mean alone": (lambda: gap().model(), {"sight": Sight(mean=(0, 0, 0))}, "belong together"),
    "bad std": (lambda: gap().model(), {"sight": Sight(mean=(0, 0, 0), std=(0, 1, 1))}, "above 0"),
    "names": (
        lambda: gap().model(),
        {"labels": "imagenet"},
        "1000 labels for 5 classes; give one label a line",
    ),
    "int8": (lambda: gap().model(), {"format": Format(precision="int8")}, "int8 needs --calibration"),
}


@pytest.mark.parametrize(("build", "how", "reason"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_cannot_be_served_is_refused_in_one_line(
    build: Callable[[], onnx.ModelProto], how: dict, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=reason) as refused:
        imported(build(), tmp_path, **how)
    assert "\n" not in str(refused.value)
    assert "net/" not in str(refused.value)
    assert not (tmp_path / "toy" / "1" / "model.onnx").exists()


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "no ONNX file"), (b"\xff\xff\xff", "no ONNX file"), (None, "cannot read")]
)
def test_what_is_no_onnx_file_is_refused(content: bytes | None, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "toy.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ExportError, match=reason):
        run(Request(source=path, out=tmp_path / "1" / "model.onnx"))


def test_missing_external_data_is_named(tmp_path: Path) -> None:
    onnx.save(
        gap().model(), tmp_path / "toy.onnx", save_as_external_data=True, size_threshold=0, location="w.bin"
    )
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ExportError, match="another file that cannot be read; put it beside"):
        run(Request(source=tmp_path / "toy.onnx", out=tmp_path / "1" / "model.onnx"))


def test_the_card_says_what_the_file_was_held_against(tmp_path: Path) -> None:
    imported(gap().model(), tmp_path, trained_on="birds")
    card = (tmp_path / "toy" / "1" / "README.md").read_text()
    assert "logits against the original file, largest difference" in card
    assert "completeness" in card
    assert "birds" in card
    assert "PyTorch" not in card
