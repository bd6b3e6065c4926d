"""The two layouts of a feature map and how to go between them: tokens (B, N, C) with N = H·W row-major, and
maps (B, C, H, W).

Both ways go through (B, H, W, C): a permutation of four axes is one that runtimes fuse into the layout change
of the convolution beside it.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

Grid = tuple[int, int]


def to_map(tokens: Tensor, grid: Grid) -> Tensor:
    """(B, H·W, C) → (B, C, H, W). A view: the result is channels-last in memory."""
    return tokens.unflatten(1, grid).permute(0, 3, 1, 2)


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) → (B, H·W, C). A view."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of a map (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)
