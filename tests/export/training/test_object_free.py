"""Pictures without their object: made where the network looks, kept where it no longer sees the class."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from export.paca import PaCaConfig, PaCaViT, StageConfig
from export.training import object_free as made
from export.training.data import Pictures
from export.training.object_free import object_free


@pytest.fixture
def network() -> PaCaViT:
    torch.manual_seed(0)
    stages = StageConfig(8, 1, 2, 3), StageConfig(16, 1, 4)
    config = PaCaConfig("tiny", stages, num_classes=3, image_size=64, patch_size=4, pool="gated")
    return PaCaViT(config).eval()


def pictures() -> Pictures:
    """Grey, with a white square in the upper left."""
    images = np.full((8, 64, 64, 3), 90, np.uint8)
    images[:, 8:16, 8:16] = 255
    return Pictures(images, np.zeros(8, np.int64), ("a", "b", "c"))


def shares(at: tuple[int, int]) -> torch.Tensor:
    found = torch.full((8, 8), 1e-4)
    found[at] = 1
    return found / found.sum()


def test_what_holds_the_shares_is_painted_over_with_the_colours_around() -> None:
    painted = made._paint_out(pictures().images[0], shares((1, 1)))
    assert painted is not None
    assert painted.max() < 160
    assert np.array_equal(painted[32:], pictures().images[0][32:])


def test_a_corner_lies_where_no_share_is_and_fills_the_picture() -> None:
    corner = made._corner(pictures().images[0], shares((1, 1)))
    assert corner is not None
    assert corner.shape == (64, 64, 3)
    assert corner.max() == 90
    assert made._corner(pictures().images[0], torch.full((8, 8), 1 / 64)) is None


def test_only_pictures_in_which_the_class_is_gone_are_kept(
    network: PaCaViT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made, "QUIET", 1.0)
    monkeypatch.setattr(made, "LARGEST", 1.0)
    with torch.no_grad():
        network.head.bias.copy_(torch.tensor([0.0, 9.0, 0.0]))
    assert len(object_free(network, pictures(), 8)) == 8
    always = dataclasses.replace(pictures(), labels=np.ones(8, np.int64))
    assert object_free(network, always, 8).shape == (0, 64, 64, 3)
