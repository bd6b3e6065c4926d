"""Reading checkpoints of segmenters: the published layouts strictly, other heads refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from export.paca.segmentation import PaCaSegmenter
from export.segmenters import from_weights, load
from export.weight_files import CheckpointError
from tests.export.segmentation_fixtures import LAYOUTS, layout, tiny_segmenter


def shaped_like(model: PaCaSegmenter) -> dict[str, Tensor]:
    """Weights of the right shapes that take no memory."""
    return {key: torch.zeros((), dtype=t.dtype).expand(t.shape) for key, t in model.state_dict().items()}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_published_layout_is_recognised_from_its_tensors_alone(name: str) -> None:
    with torch.device("meta"):
        expected = PaCaSegmenter(layout(name))
    model, (note,) = from_weights(shaped_like(expected))
    found, wanted = model.config.backbone, expected.config.backbone
    assert (found.stages, found.teacher_depths) == (wanted.stages, wanted.teacher_depths)
    assert (model.config.num_classes, model.config.width, found.image_size) == (150, 256, 512)
    assert "200 clusters" in note or "200, 200" in note


def test_an_mmengine_file_loads_and_its_auxiliary_head_is_left_out_and_said(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = PaCaSegmenter(layout("pacavit_tiny_p2cconv_100_0"))
    weights = {key: torch.randn(t.shape).to(t.dtype) for key, t in model.state_dict().items()}
    state = {**weights, "auxiliary_head.conv_seg.weight": torch.zeros(150, 256, 1, 1)}
    torch.save({"meta": {"epoch": 3}, "state_dict": state}, tmp_path / "seg.pth")
    loaded = load(tmp_path / "seg.pth")
    assert loaded
    assert loaded.model.config.name == "pacahead_pacavit_tiny_p2cconv_100_0"
    assert any("auxiliary head (1 tensors)" in note for note in loaded.notes)
    for key, value in loaded.model.state_dict().items():
        torch.testing.assert_close(value, weights[key].to(value.dtype))
    assert load(tmp_path / "seg.pth", "pacavit_tiny_p2cconv_100_0")
    with pytest.raises(CheckpointError, match="not pacavit_base"):
        load(tmp_path / "seg.pth", "pacavit_base_p2cconv_100_0")


def test_our_own_file_says_what_it_is(tmp_path: Path) -> None:
    model = tiny_segmenter()
    metadata = {
        "paca.config": json.dumps(model.config.to_dict()),
        "paca.labels": json.dumps(["a", "b", "c", "d"]),
    }
    save_file(dict(model.state_dict()), tmp_path / "model.safetensors", metadata)
    loaded = load(tmp_path / "model.safetensors")
    assert loaded
    assert loaded.labels == ("a", "b", "c", "d")
    assert loaded.model.config == model.config


def test_a_classifier_is_none(tmp_path: Path) -> None:
    torch.save({"stage1.0.norm1_before.weight": torch.zeros(4)}, tmp_path / "c.pth")
    assert load(tmp_path / "c.pth") is None


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("decode_head.psp_modules.0.1.conv.weight", "UPerNet"),
        ("roi_head.bbox_head.fc_cls.weight", "Mask R-CNN"),
    ],
)
def test_other_heads_are_refused_in_one_line_that_names_them(tmp_path: Path, key: str, said: str) -> None:
    state = {"backbone.stage1.0.norm1_before.weight": torch.zeros(96), key: torch.zeros(4, 4)}
    torch.save({"state_dict": state}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=said) as refused:
        load(tmp_path / "other.pth")
    assert "\n" not in str(refused.value)
    assert "PaCa head" in str(refused.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("decode_head.proj.conv.weight"), "1 tensors missing"),
        (lambda w: w.update({"decode_head.extra.weight": torch.zeros(1)}), "1 tensors unknown"),
        (lambda w: w.update({"decode_head.k.0.bias": torch.zeros(3)}), "1 tensors of another shape"),
        (lambda w: w.pop("decode_head.conv_seg.weight"), "no PaCa head"),
    ],
)
def test_tensors_that_do_not_fit_are_counted_and_named(
    change: Callable[[dict[str, Tensor]], object], said: str
) -> None:
    with torch.device("meta"):
        weights = shaped_like(PaCaSegmenter(layout("pacavit_tiny_p2cconv_100_0")))
    change(weights)
    with pytest.raises(CheckpointError, match=said):
        from_weights(weights)
