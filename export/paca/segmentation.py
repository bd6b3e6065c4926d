"""PaCa-ViT for semantic segmentation: the same backbone, and the paper's own head on its four stages.

The head asks the question of the backbone once more, with one cluster a class: where does each class gather
its evidence, and which class does each place attend to? Parameter names are the reference's, so published
checkpoints load strictly. Nothing here knows ONNX; `export.lowering` rewrites the head on a copy.

Symbols as in `model`; K classes, and as many clusters in the head.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import PaCaConfig
from .layout import Grid, to_map, to_tokens
from .model import Attending, Features, PaCaViT

WIDTH = 256  # channels inside the published heads
OUTPUT_STRIDE = 4  # pixels of the network's input to one place of the logits, in each direction
DROPOUT = 0.1


@dataclass(frozen=True)
class SegmenterConfig:
    """A backbone and its head. The backbone's `image_size` is the shorter side of the network's input; the
    longer one follows the picture, in multiples of `step`, up to `longest`. width: channels inside the
    head."""

    name: str
    backbone: PaCaConfig
    num_classes: int
    width: int = WIDTH
    step: int = 64
    longest: int = 1024

    def __post_init__(self) -> None:
        if self.backbone.pool != "mean":
            raise ValueError("a segmenter reads every patch: its backbone has no gate (pool 'mean')")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SegmenterConfig:
        """The inverse of `to_dict`, also after a trip through JSON."""
        return cls(**{**values, "backbone": PaCaConfig.from_dict(values["backbone"])})


class Segmentation(NamedTuple):
    """logits: (B, K, H, W) on the first stage's grid. scores: (B, K, H, W), the head's clusters before their
    softmax, which training supervises too. assignment: (B, K, N), each row sums to 1 over places."""

    logits: Tensor
    scores: Tensor
    assignment: Tensor


class ConvNorm(nn.Module):
    """ReLU(BatchNorm(1x1 convolution))."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, out_dim, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Swap(nn.Module):
    """(B, K, C) ↔ (B, C, K): BatchNorm wants channels second."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def linear_norm(dim: int, out_dim: int) -> nn.Sequential:
    """ReLU(BatchNorm(Linear)) of K vectors."""
    return nn.Sequential(nn.Linear(dim, out_dim), Swap(), nn.BatchNorm1d(out_dim), Swap(), nn.ReLU())


def resize(x: Tensor, size: Grid) -> Tensor:
    """(B, C, h, w) → (B, C, H, W), bilinear, corners not aligned."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class PaCaHead(Attending):
    """Patch-to-cluster attention with one cluster a class (paper, section 3.5):

    x = the stages' maps, each to `width` channels and the first grid, side by side (B, 4·width, H, W)
    z = softmax over places of clustering(x)   (B, K, N)   where each class gathers
    c = z x                                    (B, K, 4·width)   one vector a class
    o = softmax(q(x) k(c)ᵀ) v(c)               (B, N, width)   no scale, one head
    logits = conv(proj(o))                     (B, K, H, W)
    """

    def __init__(self, dims: list[int], classes: int, width: int = WIDTH) -> None:
        super().__init__()
        joint = width * len(dims)
        self.convs = nn.ModuleList(ConvNorm(dim, width) for dim in dims)
        self.q = nn.Sequential(ConvNorm(joint, width))
        self.clustering = nn.Sequential(ConvNorm(joint, width), nn.Conv2d(width, classes, 1))
        self.k, self.v = linear_norm(joint, width), linear_norm(joint, width)
        self.proj = ConvNorm(width, width)
        self.dropout = nn.Dropout2d(DROPOUT)
        self.conv_seg = nn.Conv2d(width, classes, 1)

    def forward(self, maps: list[Tensor]) -> Segmentation:
        """maps: (B, C_s, H_s, W_s) of every stage, the finest first."""
        grid = (maps[0].shape[-2], maps[0].shape[-1])
        first, *rest = (conv(x) for conv, x in zip(self.convs, maps, strict=True))
        x = torch.cat([first, *(resize(y, grid) for y in rest)], 1)
        scores = self.clustering(x)
        z = scores.flatten(2).softmax(-1)
        c = z @ to_tokens(x)
        q = to_tokens(self.q(x))
        # `attend` divides by sqrt(width); this head does not
        o = self.attend(q * q.shape[-1] ** 0.5, self.k(c), self.v(c), 1)
        logits = self.conv_seg(self.dropout(self.proj(to_map(o, grid))))
        return Segmentation(logits, scores, z)


class PaCaSegmenter(nn.Module):
    """Normalised image (B, 3, H, W) → logits (B, K, ceil(H / 4), ceil(W / 4))."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = PaCaViT(config.backbone)
        self.backbone.set_submodule("head", nn.Identity())
        dims = [stage.dim for stage in config.backbone.stages]
        self.decode_head = PaCaHead(dims, config.num_classes, config.width)

    def forward(self, image: Tensor) -> Tensor:
        return self.segment(image)[0].logits

    def segment(self, image: Tensor) -> tuple[Segmentation, Features]:
        """What the head gives, and what the backbone computed on the way."""
        found = self.backbone.features(image)
        return self.decode_head(_maps(found)), found

    def maps(self, image: Tensor) -> list[Tensor]:
        """What the head reads: (B, C_s, H_s, W_s) of every stage."""
        return _maps(self.backbone.features(image))


def _maps(found: Features) -> list[Tensor]:
    return [to_map(t, grid) for t, grid in zip(found.tokens, found.grids, strict=True)]


def published(backbone: PaCaConfig, num_classes: int = 150) -> SegmenterConfig:
    """As the reference trains and tests its ADE20K models: ImageNet's colours, shorter side 512. Its pictures
    of more than 2:1 keep their height; here they shrink, which bounds memory."""
    name = f"pacahead_{backbone.name}"
    changes: dict[str, Any] = {
        "image_size": 512,
        "interpolation": "bilinear",
        "resize": "aspect",
        "crop": 1.0,
    }
    return SegmenterConfig(name, dataclasses.replace(backbone, **changes), num_classes)
