"""The paper's segmentation head: shapes, meaning, and the same numbers in its faster form."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from export.lowering import lower_segmenter
from export.paca.model import attend_explicit, use_attention
from export.paca.segmentation import PaCaSegmenter, SegmenterConfig
from tests.export.segmentation_fixtures import LAYOUTS, layout, tiny_segmenter


@pytest.fixture(scope="module")
def model() -> PaCaSegmenter:
    return tiny_segmenter()


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (61, 83), (33, 128)])
@torch.no_grad()
def test_logits_have_a_quarter_of_the_picture_and_clusters_are_distributions_over_places(
    model: PaCaSegmenter, size: tuple[int, int]
) -> None:
    found, features = model.segment(torch.randn(2, 3, *size))
    grid = tuple(-(-side // 4) for side in size)
    assert found.logits.shape == found.scores.shape == (2, 4, *grid)
    assert features.grids[0] == grid
    torch.testing.assert_close(found.assignment.sum(-1), torch.ones(2, 4))


@torch.no_grad()
def test_a_class_is_what_the_places_that_attend_to_its_cluster_are_told(model: PaCaSegmenter) -> None:
    """Without a scale: the head's attention is softmax(q kᵀ) v, however it is computed."""
    head, x = model.decode_head, torch.randn(1, 3, 64, 64)
    q, k, v = torch.randn(1, 9, 16), torch.randn(1, 4, 16), torch.randn(1, 4, 16)
    by_hand = (q @ k.transpose(1, 2)).softmax(-1) @ v
    torch.testing.assert_close(head.attend(q * 16**0.5, k, v, 1), by_hand)
    before = model(x)
    use_attention(model, attend_explicit)
    torch.testing.assert_close(model(x), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (61, 83)])
@torch.no_grad()
def test_convolving_before_resizing_changes_nothing(model: PaCaSegmenter, size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    (logits, scores, z), _ = model.segment(x)
    lowered, _ = lower_segmenter(model).segment(x)
    torch.testing.assert_close(lowered.logits, logits, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(lowered.scores, scores, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(lowered.assignment, z, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_published_layouts_have_the_reference_s_tensors_and_parameters(name: str) -> None:
    with torch.device("meta"):
        model = PaCaSegmenter(layout(name))
    _, tensors, millions = LAYOUTS[name]
    assert len(model.state_dict()) == tensors
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 3) == millions


def test_a_config_survives_json_and_a_gate_is_refused(model: PaCaSegmenter) -> None:
    assert SegmenterConfig.from_dict(model.config.to_dict()) == model.config
    with pytest.raises(ValueError, match="reads every patch"):
        SegmenterConfig("x", dataclasses.replace(model.config.backbone, pool="gated"), 2)
