"""What tests of segmentation share: the published layouts, and a small segmenter of the tests' own."""

from __future__ import annotations

import copy
import dataclasses
from functools import lru_cache

import torch
from torch.nn import functional as F

from export.paca.config import PaCaConfig, StageConfig, variant
from export.paca.model import attend, attend_explicit, use_attention
from export.paca.segmentation import PaCaSegmenter, SegmenterConfig, published

# Variant of the backbone → cluster counts, tensors, million parameters: as the reference's own configs build
# them for ADE20K. Every one has 200 clusters, whatever its name says.
LAYOUTS: dict[str, tuple[tuple[int, ...], int, float]] = {
    "pacavit_tiny_p2cconv_100_0": ((200, 200, 200, 0), 297, 13.327),
    "pacavit_small_p2cconv_100_0": ((200, 200, 200, 0), 475, 23.164),
    "pacavit_small_p2cmlp_100_0": ((200, 200, 200, 0), 472, 23.946),
    "pacavit_convmixer_small_100": ((200,) * 4, 613, 22.240),
    "pacavit_base_p2cconv_100_0": ((200, 200, 200, 0), 635, 47.965),
    "pacavit_convmixer_base_100": ((200,) * 4, 821, 48.764),
    "pacavit_small_p2cconv_2_0": ((200, 200, 200, 0), 475, 23.164),
    "pacavit_small_p2cconv_49_0": ((200, 200, 200, 0), 475, 23.164),
    "pacavit_small_p2cconv_49_100": ((200,) * 4, 486, 23.410),
    "pacavit_small_p2cconv_100_49": ((200,) * 4, 486, 23.410),
    "pacavit_small_p2cconv_100": ((200,) * 4, 486, 23.410),
    "pacavit_small_p2cconv_100_blockwise": ((200,) * 4, 561, 25.779),
}


def layout(name: str) -> SegmenterConfig:
    """The config of a published segmenter, with its real cluster counts."""
    return published(with_clusters(variant(name), LAYOUTS[name][0]))


def with_clusters(config: PaCaConfig, counts: tuple[int, ...]) -> PaCaConfig:
    stages = tuple(dataclasses.replace(s, clusters=m) for s, m in zip(config.stages, counts, strict=True))
    return dataclasses.replace(config, stages=stages)


COLOURS = torch.tensor([[0.1, 0.1, 0.1], [0.8, 0.5, 0.3], [0.3, 0.6, 0.3], [0.4, 0.5, 0.8]])
STEPS = 40  # of teaching it the four colours: about a second


@lru_cache
def _taught(seed: int) -> PaCaSegmenter:
    torch.manual_seed(seed)
    backbone = PaCaConfig(
        "tiny",
        (StageConfig(8, 1, 2, 5), StageConfig(12, 1, 3, 3), StageConfig(16, 1, 4)),
        num_classes=4,
        image_size=64,
        resize="aspect",
        crop=1.0,
        interpolation="bilinear",
    )
    model = PaCaSegmenter(SegmenterConfig("tiny-masks", backbone, 4, width=16, step=32, longest=128))
    use_attention(model, attend_explicit)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (backbone.mean, backbone.std))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(STEPS):
        cells = torch.randint(0, 4, (8, 4, 4))
        picture = COLOURS[cells.repeat_interleave(16, 1).repeat_interleave(16, 2)].permute(0, 3, 1, 2)
        found, _ = model.segment((picture + 0.1 * torch.randn_like(picture) - mean) / std)
        target = cells.repeat_interleave(4, 1).repeat_interleave(4, 2)
        loss = F.cross_entropy(found.logits, target) + 0.4 * F.cross_entropy(found.scores, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    use_attention(model, attend)
    return model.eval().requires_grad_(False)


def tiny_segmenter(seed: int = 3) -> PaCaSegmenter:
    """Three stages (5, 3 and no clusters), shorter side 64 in steps of 32, 4 classes: dark, reddish, greenish
    and bluish places."""
    return copy.deepcopy(_taught(seed))
