"""model.onnx and explain.onnx are served together only where they belong together; files of schema 1 load as
before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from service.artifact import EXPLAIN_KEY, MANIFEST_KEY
from service.engine import Device, Engine, GradientEngine
from service.errors import BadArtifact

CPU = Device("cpu")


@pytest.fixture
def model(repository: Path) -> Path:
    return repository / "tiny" / "1" / "model.onnx"


def rewritten(model: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    proto = onnx.load(model)
    change(proto)
    onnx.save(proto, model)
    return model


def without(key: str):
    def change(proto: onnx.ModelProto) -> None:
        kept = [p for p in proto.metadata_props if p.key != key]
        del proto.metadata_props[:]
        proto.metadata_props.extend(kept)

    return change


def explain_of(model: Path) -> Path:
    return model.with_name("explain.onnx")


def edit_manifest(key: str, **members: object):
    """Changes members of a file's JSON; None removes one."""

    def change(proto: onnx.ModelProto) -> None:
        entry = next(p for p in proto.metadata_props if p.key == key)
        values = {**json.loads(entry.value), **members}
        removed = {name for name, value in members.items() if value is None}
        entry.value = json.dumps({name: value for name, value in values.items() if name not in removed})

    return change


def shuffle(proto: onnx.ModelProto) -> None:
    """What another training would leave: weights of the same sizes."""
    rng = np.random.default_rng(0)
    for tensor in proto.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim >= 2:
            mixed = rng.permutation(values.ravel()).reshape(values.shape)
            tensor.CopyFrom(onnx.numpy_helper.from_array(mixed, tensor.name))


def make_nan(proto: onnx.ModelProto) -> None:
    for tensor in proto.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim >= 2:
            spoilt = np.full_like(values, np.nan)
            tensor.CopyFrom(onnx.numpy_helper.from_array(spoilt, tensor.name))


def more_classes(proto: onnx.ModelProto) -> None:
    """The input `weights` of a network of five classes; the graph behind it is not run."""
    weights = next(i for i in proto.graph.input if i.name == "weights")
    weights.type.tensor_type.shape.dim[1].dim_value = 5


def to_schema_1(model: Path) -> None:
    """The pair as exporters wrote it before schema 2."""
    rewritten(
        model,
        edit_manifest(MANIFEST_KEY, schema=1, task=None, outputs=None, channels=None, weights_id=None),
    )
    rewritten(explain_of(model), without(EXPLAIN_KEY))


def test_a_pair_of_one_export_passes(model: Path) -> None:
    GradientEngine(explain_of(model), CPU).self_test(Engine(model, CPU))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (edit_manifest(EXPLAIN_KEY, weights_id="0" * 64), "made from different weights"),
        (without(EXPLAIN_KEY), "made from different weights"),
        (edit_manifest(EXPLAIN_KEY, golden={}), "not with fp32"),
        (shuffle, "of the golden picture is .* off"),
        (make_nan, "not finite"),
    ],
)
def test_an_explain_onnx_that_does_not_belong_to_the_model_is_refused(
    model: Path, change: Callable[[onnx.ModelProto], object], reason: str
) -> None:
    gradients = GradientEngine(rewritten(explain_of(model), change), CPU)
    with pytest.raises(BadArtifact, match=reason):
        gradients.self_test(Engine(model, CPU))


def test_an_explain_onnx_of_other_sizes_is_refused(model: Path) -> None:
    """ONNX Runtime may refuse the edited file itself; a real one of five classes it would load."""
    with pytest.raises(BadArtifact, match=r"explain\.onnx"):
        GradientEngine(rewritten(explain_of(model), more_classes), CPU).self_test(Engine(model, CPU))


def test_a_pair_of_schema_1_loads_as_before(model: Path) -> None:
    to_schema_1(model)
    engine = Engine(model, CPU)
    engine.self_test()
    assert (engine.manifest.schema, engine.manifest.weights_id) == (1, None)
    GradientEngine(explain_of(model), CPU).self_test(engine)


def test_of_a_pair_of_schema_1_only_finite_maps_can_be_asked(model: Path) -> None:
    to_schema_1(model)
    with pytest.raises(BadArtifact, match="not finite"):
        GradientEngine(rewritten(explain_of(model), make_nan), CPU).self_test(Engine(model, CPU))


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"channels": 4}, r"4 channels, this server has 3 \(RGB\)"),
        ({"task": "detection"}, r"classification or segmentation \(it is 'detection'\)"),
        ({"task": "segmentation"}, "does not list the outputs assignment_0"),
    ],
)
def test_what_this_server_does_not_serve_is_refused_in_one_line(
    model: Path, members: dict[str, object], reason: str
) -> None:
    with pytest.raises(BadArtifact, match=reason):
        Engine(rewritten(model, edit_manifest(MANIFEST_KEY, **members)), CPU)


def test_a_manifest_of_another_size_than_its_graph_is_refused_at_load(model: Path) -> None:
    def smaller(proto: onnx.ModelProto) -> None:
        entry = next(p for p in proto.metadata_props if p.key == MANIFEST_KEY)
        entry.value = entry.value.replace('"size":[32,32]', '"size":[31,31]')

    with pytest.raises(BadArtifact, match="but its manifest says"):
        Engine(rewritten(model, smaller), CPU)
