"""Tiny pictures and a tiny network: what training needs to run in a second."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from export.paca import PaCaConfig, PaCaViT, StageConfig
from export.training.checkpoint import save_final
from export.training.data import Pictures

COLOURS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (200, 50, 40)}
TINY = PaCaConfig(
    "tiny",
    (StageConfig(8, 1, 2, 5), StageConfig(16, 1, 4)),
    num_classes=3,
    image_size=16,
    patch_size=4,
    stem="conv_norm",
    drop_path=0.1,
    resize="stretch",
    crop=1.0,
    interpolation="bilinear",
)


def draw(count: int, size: int, seed: int = 0) -> Pictures:
    """Noisy pictures of one colour each, `count` a class."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(3), count))
    base = np.array(list(COLOURS.values()))[labels][:, None, None, :]
    images = np.clip(base + rng.normal(0, 40, (len(labels), size, size, 3)), 0, 255).astype(np.uint8)
    return Pictures(images, labels, tuple(COLOURS))


@pytest.fixture
def pictures() -> Pictures:
    """Twelve pictures of 16 px, four a class."""
    return draw(4, 16)


@pytest.fixture
def tiny() -> PaCaViT:
    torch.manual_seed(0)
    return PaCaViT(TINY).eval()


@pytest.fixture
def tiny_checkpoint(tiny: PaCaViT, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save_final(tiny, path, ("a", "b", "c"), 1.5, {"recipe": "none"})
    return path


@pytest.fixture
def class_folder(tmp_path: Path) -> Callable[[int], Path]:
    """A folder with one sub-folder a colour, `count` pictures in each."""

    def make(count: int) -> Path:
        root = tmp_path / "pictures"
        pictures = draw(count, 24)
        for i, (image, label) in enumerate(zip(pictures.images, pictures.labels, strict=True)):
            folder = root / pictures.classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{i:03d}.png")
        return root

    return make
