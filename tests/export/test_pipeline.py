"""Export end to end on a tiny network: what is written is verified, and what fails leaves no trace."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import io
import resource
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from export.attention_node import node_counts
from export.errors import ExportError
from export.paca import PaCaConfig, PaCaViT, StageConfig
from export.paca.model import attend_explicit
from export.pipeline import (
    Format,
    Request,
    Source,
    default_name,
    explain_stage,
    export_model,
    load_source,
    run,
)
from export.trace import trace
from export.verify import VerificationError, check_structure
from service.engine import Device, Engine, GradientEngine
from service.options import ExplainOptions
from service.predictor import Predictor
from service.results import ExplainResult

STAGES = (StageConfig(6, 1, 2, 3), StageConfig(10, 2, 5))


def network(**changes: Any) -> PaCaViT:
    torch.manual_seed(1)
    values = {
        "num_classes": 3,
        "image_size": 32,
        "patch_size": 2,
        "resize": "stretch",
        "crop": 1.0,
        **changes,
    }
    return PaCaViT(PaCaConfig("toy", STAGES, **values)).eval()


def test_the_graph_has_one_attention_node_a_block_and_none_is_decomposed(tiny_repository: Path) -> None:
    counts = node_counts(onnx.load(tiny_repository / "tiny" / "1" / "model.onnx"))
    assert counts["Attention"] == 3
    assert counts["Softmax"] == 2  # one a clustering
    assert not {"Shape", "Einsum", "Erf", "Split"} & set(counts)


def test_attention_nodes_take_three_dimensional_inputs_with_heads(tiny_repository: Path) -> None:
    graph = onnx.shape_inference.infer_shapes(onnx.load(tiny_repository / "tiny" / "1" / "model.onnx")).graph
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in graph.value_info}
    nodes = [node for node in graph.node if node.op_type == "Attention"]
    assert [{a.name: a.i for a in node.attribute}["q_num_heads"] for node in nodes] == [2, 3, 4]
    assert all(ranks[name] == 3 for node in nodes for name in node.input if name)


def test_the_file_names_no_path_of_the_machine_that_made_it(tiny_repository: Path) -> None:
    for name in ("model.onnx", "explain.onnx"):
        data = (tiny_repository / "tiny" / "1" / name).read_bytes()
        assert str(Path.cwd()).encode() not in data
        assert b"site-packages" not in data


def test_decomposed_attention_is_noticed() -> None:
    model = network()
    with pytest.raises(VerificationError, match="0 Attention nodes for 3 blocks"):
        check_structure(
            trace(model, attention=attend_explicit), model.config.blocks, model.config.clusterings, False
        )


@pytest.mark.parametrize(("pool", "dynamic"), [("cluster", False), ("gated", True)])
def test_competing_clusters_are_exported_with_their_membership(
    pool: str, dynamic: bool, tmp_path: Path
) -> None:
    competing = StageConfig(6, 1, 2, 3, normalise="clusters")
    last = StageConfig(10, 2, 5, 3, normalise="clusters", source="previous")
    torch.manual_seed(1)
    config = PaCaConfig("rival", (competing, last), num_classes=3, image_size=32, patch_size=2, pool=pool)
    model = PaCaViT(config).eval()
    source = Source(model, "rival", ("a", "b", "c"))
    report = export_model(source, tmp_path / "model.onnx", Format(dynamic_size=dynamic))
    engine = Engine(tmp_path / "model.onnx", Device("cpu"))
    assert (report.verification.attention_nodes, report.verification.softmax_nodes) == (3, 3)
    assert [stage.output for stage in engine.manifest.stages] == ["assignment_1", None]
    assert PaCaConfig.from_dict(engine.manifest.config) == config
    found = engine.run(np.full((2, 32, 32, 3), 90, np.uint8), ("membership_1", "assignment_1")).arrays
    np.testing.assert_allclose(found["membership_1"].sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(found["assignment_1"].sum((2, 3)), 1, atol=1e-5)
    assert report.explain is not None
    assert report.explain["outputs"] == ["map_1", "effect_1"]


async def explained(model: Path) -> ExplainResult:
    """A drawn picture's answer with the effects of its clusters."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (40, 30, 3), np.uint8)).save(file, "PNG")
    predictor = Predictor.open(model)
    try:
        return await predictor.explain(file.getvalue(), ExplainOptions(effect=True))
    finally:
        await predictor.close()


def test_an_earlier_start_of_the_gradients_brings_finer_maps_and_effects(tmp_path: Path) -> None:
    stages = (*STAGES, StageConfig(12, 1, 4))
    model = PaCaViT(
        PaCaConfig(
            "toy",
            (stages[0], StageConfig(10, 2, 5, 3), stages[2]),
            num_classes=3,
            image_size=32,
            patch_size=2,
        )
    ).eval()
    made = {}
    for start in (None, 1):
        report = export_model(
            Source(model, "toy", ("a", "b", "c")),
            tmp_path / str(start) / "model.onnx",
            Format(explain_from=start),
        )
        made[start] = report.manifest.explain
    assert (made[None].maps, made[None].effects) == ((2,), ())
    assert (made[1].maps, made[1].effects) == ((1, 2), (2,))
    answer = asyncio.run(explained(tmp_path / "1" / "model.onnx"))
    assert all(cluster.effect is not None for cluster in answer.explanations[0].clusters)
    with pytest.raises(ExportError, match="can start after stage 0 to 2, not 3"):
        export_model(
            Source(model, "toy", ("a", "b", "c")), tmp_path / "late" / "model.onnx", Format(explain_from=3)
        )
    assert not (tmp_path / "late" / "model.onnx").exists()


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_gated_pool_adds_one_softmax(tmp_path: Path, dynamic: bool) -> None:
    report = export_model(
        Source(network(pool="gated"), "toy", ("a", "b", "c")),
        tmp_path / "model.onnx",
        Format(dynamic_size=dynamic),
    )
    assert report.verification.softmax_nodes == 2  # one clustering, one gate


def test_one_dynamic_file_serves_many_sizes(tmp_path: Path) -> None:
    report = export_model(
        Source(network(), "toy", ("a", "b", "c")),
        tmp_path / "model.onnx",
        Format(dynamic_size=True, with_explain=False),
    )
    assert report.manifest.dynamic_size
    assert report.verification.sizes == ((32, 32), (64, 96), (128, 64), (33, 38))
    engine = Engine(tmp_path / "model.onnx", Device("cpu"))
    for height, width in ((32, 32), (48, 32), (33, 45)):
        assert engine.run(np.zeros((2, height, width, 3), np.uint8)).logits.shape == (2, 3)


def test_float_input_gives_the_answers_of_uint8_input(tmp_path: Path) -> None:
    model = network()
    pixels = np.random.default_rng(5).integers(0, 256, (2, 32, 32, 3), np.uint8)
    answers = []
    for kind in ("uint8", "float32"):
        export_model(
            Source(model, "toy", ("a", "b", "c")),
            tmp_path / kind / "model.onnx",
            Format(input_kind=kind, with_explain=False),
        )
        answers.append(Engine(tmp_path / kind / "model.onnx", Device("cpu")).run(pixels).logits)
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-5)


def test_a_network_with_broken_weights_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    out.write_bytes(b"the old one")
    model = network()
    torch.nn.init.constant_(model.head.weight, float("nan"))
    with pytest.raises(VerificationError, match="non-finite logits"):
        export_model(Source(model, "toy", ("a", "b", "c")), out, Format(with_explain=False))
    assert out.read_bytes() == b"the old one"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_a_full_disk_costs_one_line_and_not_the_old_file(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk's end: the same write fails."""
    out = tmp_path / "model.onnx"
    out.write_bytes(b"the old one")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(ExportError, match=r"cannot write model.onnx: .*; what stood there is untouched"):
            export_model(Source(network(), "toy", ("a", "b", "c")), out, Format(with_explain=False))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert out.read_bytes() == b"the old one"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_a_target_that_cannot_be_written_is_said_before_anything_is_traced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot write to"):
        export_model(Source(network(), "toy", ("a", "b", "c")), tmp_path / "file" / "model.onnx")


def test_where_explain_onnx_takes_over() -> None:
    assert explain_stage(network()) == 1  # the second last stage
    taught = tuple(dataclasses.replace(stage, clusters=3, clustering="teacher") for stage in STAGES)
    assert (
        explain_stage(
            PaCaViT(PaCaConfig("taught", taught, image_size=32, patch_size=2, teacher_depths=(1, 1)))
        )
        == 0
    )  # the patch embedding
    assert explain_stage(PaCaViT(PaCaConfig("one", STAGES[:1], image_size=32, patch_size=2))) is None


def test_a_network_with_a_teacher_is_served_with_its_gradients(tmp_path: Path) -> None:
    taught = tuple(dataclasses.replace(stage, clusters=3, clustering="teacher", depth=1) for stage in STAGES)
    torch.manual_seed(1)
    model = PaCaViT(
        PaCaConfig(
            "taught",
            taught,
            num_classes=3,
            image_size=32,
            patch_size=2,
            resize="stretch",
            crop=1.0,
            teacher_depths=(1, 1),
        )
    )
    report = export_model(Source(model, "taught", ("a", "b", "c")), tmp_path / "model.onnx")
    assert report.explain is not None
    assert report.manifest.explain is not None
    engine = Engine(tmp_path / "model.onnx", Device("cpu"))
    pixels = np.random.default_rng(5).integers(0, 256, (2, 32, 32, 3), np.uint8)
    features = engine.run(pixels, ("features",)).arrays["features"]
    found = GradientEngine(tmp_path / "explain.onnx").run(features, np.eye(3, dtype=np.float32)[:2])
    assert {name: array.shape for name, array in found.items()} == {
        "map_1": (2, 16, 16),
        "effect_1": (2, 3),
        "effect_2": (2, 3),
    }


def test_labels_must_fit_the_classes(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="2 labels for 3 classes"):
        export_model(Source(network(), "toy", ("a", "b")), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (Request("pacavit_tiny_p2cconv_1000"), "did you mean 'pacavit_tiny_p2cconv_100_0'"),
        (Request("auto"), "needs a --checkpoint"),
        (Request("paca_small_128", image_size=24), "needs 32 to 2048 pixels"),
        (Request("paca_small_128", labels=Path("absent.txt")), "cannot read the labels"),
        (Request("paca_small_128", format=Format(precision="int9")), "choose one of: fp32, fp16, int8"),
        (Request("paca_small_128", format=Format(input_kind="float16")), "choose one of: uint8, float32"),
    ],
)
def test_bad_requests_end_in_one_line_and_write_nothing(
    tmp_path: Path, request_: Request, reason: str
) -> None:
    with pytest.raises(ExportError, match=reason) as failure:
        run(dataclasses.replace(request_, out=tmp_path / "model.onnx"))
    assert "\n" not in str(failure.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("variant", "checkpoint", "out", "name"),
    [
        ("paca_small_128", None, "pets/1/model.onnx", "pets"),
        ("paca_small_128", None, "model.onnx", "paca_small_128"),
        ("auto", "runs/flowers.safetensors", "pets/1/model.onnx", "pets"),
        ("auto", "runs/flowers.safetensors", "model.onnx", "flowers"),
        ("auto", "runs/mine/model.safetensors", "model.onnx", "paca_small_128"),
        ("auto", "best.pth", "model.onnx", "paca_small_128"),
        ("paca_small_128", "runs/flowers.safetensors", "model.onnx", "paca_small_128"),
    ],
)
def test_a_model_without_a_name_gets_a_telling_one(
    tmp_path: Path, variant: str, checkpoint: str | None, out: str, name: str
) -> None:
    request = Request(variant, checkpoint=Path(checkpoint) if checkpoint else None, out=tmp_path / out)
    assert default_name(request, "paca_small_128") == name
    assert default_name(dataclasses.replace(request, name="roses"), "paca_small_128") == "roses"


def test_pictures_of_other_channels_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"toy takes pictures of 4 channels; only 3 \(RGB\) are served"):
        export_model(Source(network(in_channels=4), "toy", ("a", "b", "c")), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_nothing_takes_more_than_six_parameters_by_position() -> None:
    for part in (Request, Source, Format, export_model, run, load_source):
        by_position = [
            p for p in inspect.signature(part).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD
        ]
        assert len(by_position) <= 6, part


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Forty small pictures to calibrate on."""

    rng = np.random.default_rng(2)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(40):
        coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(coarse).resize((40, 36), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_smaller_formats_keep_fused_attention_and_load_in_the_server(
    tmp_path: Path, pictures: Path, precision: str
) -> None:
    from safetensors.torch import save_file

    model = network()
    torch.nn.init.normal_(model.head.weight, std=2.0)
    import json

    save_file(
        model.state_dict(),
        tmp_path / "w.safetensors",
        {"paca.config": json.dumps(model.config.to_dict()), "paca.labels": '["a", "b", "c"]'},
    )
    out = tmp_path / "toy" / "1" / f"model.{precision}.onnx"
    report = run(
        Request(
            "auto",
            checkpoint=tmp_path / "w.safetensors",
            out=out,
            format=Format(precision=precision, calibration=pictures),
        )
    )
    assert report.manifest.precision == precision
    assert node_counts(onnx.load(out))["Attention"] == 3
    engine = Engine(out, Device("cpu"))
    engine.self_test()
    assert engine.manifest.verification["logits_difference"] < 0.5


def test_int8_needs_pictures_to_calibrate_on(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="--calibration"):
        run(Request("paca_small_128", out=tmp_path / "model.onnx", format=Format(precision="int8")))
    assert list(tmp_path.iterdir()) == []
