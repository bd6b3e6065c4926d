"""`paca export` of a segmenter: one verified file for many sizes, in every precision."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from export.attention_node import node_counts
from export.errors import ExportError
from export.pipeline import Format, Request
from export.segment import Source, export_segmenter, run
from export.trace import trace_segmenter
from export.verify import VerificationError, verify_segmenter
from service.engine import Device, Engine
from tests.export.segmentation_fixtures import tiny_segmenter

LABELS = ("background", "red", "green", "blue")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("masks") / "tiny-masks" / "1" / "model.onnx"
    export_segmenter(Source(tiny_segmenter(), "tiny-masks", LABELS), out)
    return out


def test_the_graph_has_one_attention_more_than_blocks_and_says_what_the_server_must_know(
    exported: Path,
) -> None:
    proto = onnx.load(exported)
    counts = node_counts(proto)
    assert (counts["Attention"], counts["Softmax"], counts["BatchNormalization"]) == (4, 3, 0)
    assert {o.version for o in proto.opset_import if o.domain == ""} == {23}
    m = Engine(exported, Device("cpu")).manifest
    assert (m.task, m.schema, m.output_stride, m.attention_nodes) == ("segmentation", 2, 4, 4)
    assert (m.preprocessing.resize, m.preprocessing.step, m.preprocessing.longest) == ("aspect", 32, 128)
    assert m.palette[0] == (0, 0, 0)
    assert len(set(m.palette)) == 4
    assert [(o.name, o.role) for o in m.outputs] == [("logits", "logits"), ("assignment_0", "assignment")]
    assert (exported.parent / "README.md").is_file()


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (96, 64), (61, 83)])
def test_one_file_takes_every_size_and_gives_torch_s_numbers(exported: Path, size: tuple[int, int]) -> None:
    images = np.random.default_rng(1).integers(0, 256, (2, *size, 3), np.uint8)
    engine, model = Engine(exported, Device("cpu")), tiny_segmenter()
    out = engine.run(images, ("assignment_0",))
    with torch.no_grad():
        found, _ = model.segment(torch.from_numpy(engine.manifest.preprocessing.to_float(images)))
    np.testing.assert_allclose(out.logits, found.logits.numpy(), atol=2e-5)
    np.testing.assert_allclose(
        out.arrays["assignment_0"].reshape(2, 4, -1), found.assignment.numpy(), atol=1e-6
    )


def test_a_golden_picture_is_part_of_the_file_and_another_graph_fails_it(
    exported: Path, tmp_path: Path
) -> None:
    Engine(exported, Device("cpu")).self_test()
    proto = onnx.load(exported)
    weight = next(w for w in proto.graph.initializer if "conv_seg.weight" in w.name)
    weight.raw_data = (1.5 * np.frombuffer(weight.raw_data, np.float32)).tobytes()
    onnx.save(proto, tmp_path / "other.onnx")
    with pytest.raises(Exception, match="self-test failed"):
        Engine(tmp_path / "other.onnx", Device("cpu")).self_test()


def test_a_graph_of_other_numbers_is_not_written(tmp_path: Path, exported: Path) -> None:
    proto = trace_segmenter(tiny_segmenter())
    with pytest.raises(VerificationError, match="logits"):
        verify_segmenter(proto, exported, tiny_segmenter(seed=4))


def test_a_file_of_ours_is_exported_by_its_name_and_a_float_input_works(tmp_path: Path) -> None:
    model = tiny_segmenter()
    config = {"paca.config": json.dumps(model.config.to_dict()), "paca.labels": json.dumps(LABELS)}
    save_file(dict(model.state_dict()), tmp_path / "mine.safetensors", config)
    request = Request(
        "auto",
        checkpoint=tmp_path / "mine.safetensors",
        out=tmp_path / "m" / "2" / "model.onnx",
        format=Format(input_kind="float32"),
    )
    report = run(request)
    assert (report.manifest.name, report.manifest.labels, report.manifest.input) == ("m", LABELS, "float32")
    Engine(report.path, Device("cpu")).self_test()


def test_reduced_files_belong_to_the_version_and_agree_on_most_pixels(exported: Path, tmp_path: Path) -> None:
    half = exported.with_name("model.fp16.onnx")
    source = Source(tiny_segmenter(), "tiny-masks", LABELS)
    report = export_segmenter(source, half, Format(precision="fp16"))
    assert report.manifest.weights_id == Engine(exported, Device("cpu")).manifest.weights_id
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(32):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((80, 60)).save(folder / f"{i}.png")
    eight = exported.with_name("model.int8.onnx")
    report = export_segmenter(source, eight, Format(precision="int8", calibration=folder))
    assert report.manifest.verification["agreement"] >= 0.99
    assert Engine(eight, Device("cpu")).manifest.precision == "int8"


@pytest.mark.parametrize(
    ("labels", "said"), [(LABELS[:3], "3 labels for 4 classes"), ((*LABELS, "x"), "5 labels for 4 classes")]
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, labels: tuple[str, ...], said: str) -> None:
    with pytest.raises(ExportError, match=said):
        export_segmenter(Source(tiny_segmenter(), "x", labels), tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
