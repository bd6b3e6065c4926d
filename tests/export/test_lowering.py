"""The lowered copy computes the same numbers, and the original stays as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from export.lowering import MapMlp, OneStepStem, lower
from export.paca import PaCaConfig, PaCaViT, StageConfig
from export.paca.model import Mlp, attend_explicit, use_attention

CONV = (
    StageConfig(8, 2, 2, 5),
    StageConfig(12, 2, 3, 4, "mlp", 1),
    StageConfig(16, 1, 4, 3, "linear"),
    StageConfig(16, 1, 4),
)
COMPETING = (
    StageConfig(8, 2, 2, 5),
    StageConfig(12, 2, 3, 4, normalise="clusters"),
    StageConfig(16, 1, 4, 4, normalise="clusters", source="previous"),
)
TAUGHT = (StageConfig(8, 2, 2, 5, "teacher"), StageConfig(12, 1, 3), StageConfig(16, 1, 4, 3, "teacher"))
CONFIGS = {
    "conv stem": PaCaConfig("a", CONV, num_classes=3, image_size=64),
    "normed stem": PaCaConfig("b", CONV, num_classes=3, image_size=64, stem="conv_norm"),
    "gated pool": PaCaConfig("g", CONV[:2], num_classes=3, image_size=64, pool="gated"),
    "patch 2": PaCaConfig("c", CONV, num_classes=3, image_size=64, patch_size=2),
    "patch 8": PaCaConfig("d", CONV[:2], num_classes=3, image_size=64, patch_size=8, stem="conv_norm"),
    "competing": PaCaConfig("f", COMPETING, num_classes=3, image_size=64, pool="cluster"),
    "teacher": PaCaConfig("e", TAUGHT, num_classes=3, image_size=64, teacher_depths=(1, 2, 1)),
}


def network(config: PaCaConfig) -> PaCaViT:
    """Weights as after a training: no bias is zero, no norm the identity."""
    torch.manual_seed(0)
    model = PaCaViT(config).eval()
    for name, values in model.state_dict().items():
        if name.endswith("running_var"):
            values.uniform_(0.5, 2)
        elif values.ndim == 1:
            values.add_(torch.randn(values.shape) * 0.3)
    return model


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("size", [(64, 64), (66, 49), (63, 52), (65, 70)])
@pytest.mark.parametrize("fixed", [True, False], ids=["fixed", "any size"])
@torch.no_grad()
def test_every_output_is_the_originals_to_rounding(name: str, size: tuple[int, int], fixed: bool) -> None:
    model = network(CONFIGS[name])
    image = torch.randn(2, 3, *size)
    lowered = lower(model, size if fixed else None)
    expected, found = model.features(image), lowered.features(image)
    for a, b in zip(expected.tokens, found.tokens, strict=True):
        torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-5)
    shown = zip(
        [*expected.assignments, *expected.memberships], [*found.assignments, *found.memberships], strict=True
    )
    for c, d in shown:
        assert (c is None) == (d is None)
        if c is not None:
            torch.testing.assert_close(d, c, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(lowered(image), model(image), atol=1e-5, rtol=1e-5)


def test_the_original_keeps_its_weights_and_its_form() -> None:
    model = network(CONFIGS["teacher"])
    before = copy.deepcopy(model.state_dict())
    lower(model, (64, 64))
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(p.requires_grad for p in model.parameters())
    assert any(isinstance(module, Mlp) for module in model.modules())


def test_lowering_a_network_in_training_does_not_end_its_training() -> None:
    model = network(CONFIGS["normed stem"]).train()
    assert not lower(model).training
    assert model.training


def test_two_convolutions_become_one_only_where_that_is_exact() -> None:
    model = network(CONFIGS["conv stem"])
    assert isinstance(lower(model, (64, 67)).patch_embed, OneStepStem)
    assert not isinstance(lower(model, (66, 64)).patch_embed, OneStepStem)
    assert not isinstance(lower(model).patch_embed, OneStepStem)
    assert not isinstance(lower(network(CONFIGS["normed stem"]), (64, 64)).patch_embed, OneStepStem)


def test_layouts_change_and_constants_fold() -> None:
    lowered = lower(network(CONFIGS["teacher"]), (64, 64))
    assert sum(isinstance(module, MapMlp) for module in lowered.modules()) == CONFIGS["teacher"].blocks
    assert all(block.attn.k.bias is None and block.attn.v.bias is None for block in lowered.stage1)
    assert isinstance(lowered.paca_teacher.fpn1[3], nn.Identity)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in lower(network(CONFIGS["normed stem"])).modules())
    assert not any(p.requires_grad for p in lowered.parameters())


@torch.no_grad()
def test_the_copys_attention_can_still_be_exchanged() -> None:
    model = network(CONFIGS["conv stem"])
    lowered = lower(model, (64, 64))
    use_attention(lowered, attend_explicit)
    assert lowered.stage1[0].attn.attend is attend_explicit
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(lowered(image), model(image), atol=1e-5, rtol=1e-5)
