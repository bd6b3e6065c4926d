"""Rewrites a network into the form that runs fastest, on a copy: same functions, same numbers to rounding, other layouts and folded constants.

Only algebra that holds exactly is used, each rewrite with its reason beside it; none touches `paca.model`, whose names must stay those of the
checkpoints. What the exporter does with the result is `trace`'s business. Figures: docs/speed.md.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .paca.layout import Grid
from .paca.model import Mlp, PaCaViT


def lower(model: PaCaViT) -> PaCaViT:
    """A deep copy of `model`, in evaluation mode and without gradients, computing the same `features` and `classify` in fewer, faster steps."""
    lowered = copy.deepcopy(model).eval().requires_grad_(False)
    _fold_stem_norm(lowered)
    for name, module in list(lowered.named_modules()):
        if isinstance(module, Mlp):
            lowered.set_submodule(name, MapMlp(module))
    return lowered


class MapMlp(nn.Module):
    """`Mlp` wholly on the map: C channels change layout instead of 4C, and both linear layers are 1x1 convolutions. x: (B, N, C)."""

    def __init__(self, mlp: Mlp) -> None:
        super().__init__()
        self.fc1 = pointwise(mlp.fc1)
        self.dwconv = absorb_shortcut(mlp.dwconv.dwconv)
        self.fc2 = pointwise(mlp.fc2)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        x = x.unflatten(1, grid).permute(0, 3, 1, 2)
        x = self.fc2(F.gelu(self.dwconv(self.fc1(x))))
        return x.permute(0, 2, 3, 1).flatten(1, 2)


def pointwise(linear: nn.Linear) -> nn.Conv2d:
    """The 1x1 convolution that does to every position what `linear` does to every token."""
    conv = nn.Conv2d(linear.in_features, linear.out_features, 1, bias=linear.bias is not None)
    conv.load_state_dict({key: value[:, :, None, None] if key == "weight" else value for key, value in linear.state_dict().items()})
    return conv.requires_grad_(False)


def absorb_shortcut(conv: nn.Conv2d) -> nn.Conv2d:
    """u + conv(u) as one depthwise convolution: the shortcut is one more in the centre tap."""
    out = copy.deepcopy(conv)
    rows, columns = out.weight.shape[-2:]
    with torch.no_grad():
        out.weight[:, 0, rows // 2, columns // 2] += 1
    return out


def _fold_stem_norm(model: PaCaViT) -> None:
    """BatchNorm right after a convolution is a scale and a shift of its output."""
    stem = model.patch_embed.proj
    if not isinstance(stem, nn.Sequential):
        return
    layers: list[nn.Module] = []
    for layer in stem:
        if isinstance(layer, nn.BatchNorm2d):
            assert isinstance(layers[-1], nn.Conv2d)
            layers[-1] = fuse_conv_bn_eval(layers[-1], layer)
        else:
            layers.append(layer)
    model.patch_embed.proj = nn.Sequential(*layers)
