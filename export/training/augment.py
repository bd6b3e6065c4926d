"""Augmentation of a whole batch at once in torch, because one picture at a time would cost more than the
network.

uint8 pictures in, normalised float batch out; random resized crop, flip, brightness/contrast/saturation,
random erasing to the mean. The erasing also makes masked pictures ordinary input, which the measurements of
explanations rely on. Blur and JPEG artefacts, if a recipe asks, so that neither is a cue. `mix` blends
pictures with each other.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Augmentation:
    """scale, ratio: area share and aspect range of the crop; jitter: relative strength; erase: probability,
    and its side's range. mixup, cutmix: parameter of the Beta distribution of the blend, 0 = off; with both
    on, each batch takes one of them. blur, jpeg: probabilities of a coarser picture, and of compression."""

    scale: tuple[float, float] = (0.25, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.35
    erase: float = 0.25
    erase_side: tuple[float, float] = (0.15, 0.45)
    mixup: float = 0.0
    cutmix: float = 0.0
    blur: float = 0.0
    jpeg: float = 0.0


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) → float32 (B, 3, H, W), (x / 255 - mean) / std."""
    return ((images.permute(0, 3, 1, 2).float() / 255) - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)


def _uniform(
    shape: tuple[int, ...], low: float, high: float, generator: torch.Generator, device: torch.device
) -> Tensor:
    return torch.empty(shape).uniform_(low, high, generator=generator).to(device)


def augment(
    images: Tensor, size: int, how: Augmentation, mean: Tensor, std: Tensor, generator: torch.Generator
) -> Tensor:
    """uint8 (B, H, W, 3) → augmented, normalised (B, 3, size, size). All randomness comes from `generator`
    (on the CPU)."""
    return augment_with_crops(images, size, how, (mean, std), generator)[0]


def augment_with_crops(
    images: Tensor, size: int, how: Augmentation, scale: tuple[Tensor, Tensor], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """As `augment`, and the crops (B, 2, 3) as affine maps, which `view` applies to maps of the whole
    pictures. scale: mean and standard deviation of the channels."""
    mean, std = scale
    if how.jpeg:
        images = compress(images, how.jpeg, generator)
    batch, device = images.shape[0], images.device
    x = images.permute(0, 3, 1, 2).float() / 255
    area = _uniform((batch,), *how.scale, generator, device)
    aspect = _uniform((batch,), math.log(how.ratio[0]), math.log(how.ratio[1]), generator, device).exp()
    width, height = (area * aspect).sqrt().clamp(max=1.0), (area / aspect).sqrt().clamp(max=1.0)
    centre_x = _uniform((batch,), -1, 1, generator, device) * (1 - width)
    centre_y = _uniform((batch,), -1, 1, generator, device) * (1 - height)
    mirror = torch.where(_uniform((batch,), 0, 1, generator, device) < how.flip, -1.0, 1.0)
    theta = torch.zeros(batch, 2, 3, device=device)
    theta[:, 0, 0], theta[:, 0, 2] = width * mirror, centre_x
    theta[:, 1, 1], theta[:, 1, 2] = height, centre_y
    x = view(x, theta, (size, size))
    if how.blur:
        x = blur(x, how.blur, generator)

    low, high = 1 - how.jitter, 1 + how.jitter
    x = x * _uniform((batch, 1, 1, 1), low, high, generator, device)
    middle = x.mean((1, 2, 3), keepdim=True)
    x = (x - middle) * _uniform((batch, 1, 1, 1), low, high, generator, device) + middle
    grey = x.mean(1, keepdim=True)
    x = ((x - grey) * _uniform((batch, 1, 1, 1), low, high, generator, device) + grey).clamp(0, 1)
    x = (x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)

    sides = _uniform((batch, 2), *how.erase_side, generator, device) * size
    corner = _uniform((batch, 2), 0, 1, generator, device) * (size - sides)
    chosen = _uniform((batch,), 0, 1, generator, device) < how.erase
    at = torch.arange(size, device=device).view(1, size)
    rows = (at >= corner[:, :1]) & (at < corner[:, :1] + sides[:, :1])
    columns = (at >= corner[:, 1:]) & (at < corner[:, 1:] + sides[:, 1:])
    erased = chosen.view(-1, 1, 1, 1) & (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1)
    return x.masked_fill(erased, 0.0), theta


def view(maps: Tensor, crops: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, C, H, W) of whole pictures → (B, C, *grid) of their crops (B, 2, 3)."""
    at = F.affine_grid(crops, [len(maps), 1, *grid], align_corners=False)
    return F.grid_sample(maps, at, mode="bilinear", padding_mode="reflection", align_corners=False)


def blur(x: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Some pictures of (B, C, S, S) as if enlarged from a smaller one, of 0.35 to 0.8 times the side."""
    chosen = torch.rand(len(x), generator=generator).to(x.device) < probability
    side = round(x.shape[-1] * float(torch.empty(()).uniform_(0.35, 0.8, generator=generator)))
    small = F.interpolate(x[chosen], size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    large = F.interpolate(small, size=x.shape[-2:], mode="bilinear", align_corners=False)
    return x.masked_scatter(chosen.view(-1, 1, 1, 1), large)


def compress(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Some pictures of uint8 (B, H, W, 3) after JPEG compression of quality 25 to 90."""
    images = images.clone()
    for i in torch.rand(len(images), generator=generator).lt(probability).nonzero()[:, 0].tolist():
        file, quality = io.BytesIO(), int(torch.randint(25, 91, (), generator=generator))
        Image.fromarray(images[i].cpu().numpy()).save(file, "JPEG", quality=quality)
        images[i] = torch.from_numpy(np.array(Image.open(file))).to(images.device)
    return images


def mix(
    x: Tensor, labels: Tensor, classes: int, how: Augmentation, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Blends each picture with the batch read backwards: x (B, 3, S, S), labels (B,) → x, target
    probabilities (B, K).

    mixup (Zhang et al. 2018) averages pixels; cutmix (Yun et al. 2019) pastes a rectangle; targets are mixed
    in the same proportion. One proportion a batch.
    """
    cut = how.cutmix > 0 and (how.mixup == 0 or torch.rand((), generator=generator).item() < 0.5)
    keep = _beta(how.cutmix if cut else how.mixup, generator)
    if cut:
        size = x.shape[-1]
        side = round(size * math.sqrt(1 - keep))
        top, left = (int(torch.randint(0, size - side + 1, (), generator=generator)) for _ in range(2))
        mixed = x.clone()
        mixed[..., top : top + side, left : left + side] = x.flip(0)[
            ..., top : top + side, left : left + side
        ]
        keep = 1 - (side / size) ** 2
    else:
        mixed = x * keep + x.flip(0) * (1 - keep)
    target = F.one_hot(labels, classes).float()
    return mixed, target * keep + target.flip(0) * (1 - keep)


def _beta(alpha: float, generator: torch.Generator) -> float:
    """One draw of Beta(alpha, alpha), from the checkpointed generator."""
    a, b = torch._standard_gamma(torch.full((2,), alpha, dtype=torch.float64), generator=generator).tolist()
    return a / (a + b)
