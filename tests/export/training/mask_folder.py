"""A folder of drawn pictures with masks, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.export.segmentation_fixtures import COLOURS


def write(
    folder: Path, count: int, *, size: tuple[int, int] = (60, 40), classes: tuple[str, ...] = ()
) -> None:
    """`count` pictures of `size` (width, height) with stripes of the first three colours of `COLOURS`."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        width, height = size
        ids = np.repeat(rng.permutation(3), -(-width // 3))[:width].astype(np.uint8)[None].repeat(height, 0)
        pixels = 255 * COLOURS.numpy()[ids] + rng.normal(0, 12, (height, width, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"p{i}.png")
        Image.fromarray(ids).save(folder / "masks" / f"p{i}.png")
    if classes:
        (folder / "classes.txt").write_text("\n".join(classes))
