"""Gaussian mixture with diagonal covariances on the tokens of one picture, by a fixed number of EM steps
(Dempster et al. 1977) in the log domain."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..layout import Grid
from .membership import centred, evenly_spaced, full_precision

# of a variance, relative to the picture's: where variances start, and what keeps a component from collapsing
# onto one patch
FLOOR = 0.1
EMPTY = 1e-3  # patches; a component with less responsibility than this is empty


class GaussianMixture(nn.Module):
    """x (B, N, C) → z (B, M, N): responsibilities of component m, normalised over patches. No parameters;
    cost (steps + 1) · 4 · N·M·C.

    Differentiable: gradients run through all EM steps to x, except through the floor of the variances. Starts
    from evenly spaced means, variances at a tenth of the picture's, and equal weights. An empty component
    keeps its mean and variance, and its row is uniform; with M > N repeated seeds give repeated, equal rows.
    """

    softmaxes = 1  # of the exported graph
    near_ties = True  # EM amplifies rounding where components overlap

    def __init__(self, dim: int, clusters: int, steps: int = 5) -> None:
        super().__init__()
        self.clusters = clusters
        self.steps = steps

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        with full_precision(x):
            points = centred(x)
            squares = points.square()
            narrow = FLOOR * squares.mean(1, keepdim=True) + 1e-6  # (B, 1, C)
            floor = narrow.mean(-1, keepdim=True).detach()
            mean = evenly_spaced(points, self.clusters)
            variance, mass = (
                narrow,
                points.new_ones(1, 1, 1),
            )  # the same for all components: they broadcast over (B, M, C)
            for _ in range(self.steps):
                share = log_responsibilities(points, squares, mean, variance, mass).exp()  # (B, M, N)
                mass = share.sum(-1, keepdim=True)
                alive, total = mass > EMPTY, mass.clamp(min=EMPTY)
                moved = share @ points / total
                spreads = (share @ squares / total - moved.square()).clamp(min=0) + floor
                mean, variance = torch.where(alive, moved, mean), torch.where(alive, spreads, variance)
            log_share = log_responsibilities(points, squares, mean, variance, mass)
            alive = log_share.exp().sum(-1, keepdim=True) > EMPTY
            return torch.where(alive, log_share, 0.0).softmax(-1)


def log_responsibilities(
    points: Tensor, squares: Tensor, mean: Tensor, variance: Tensor, mass: Tensor
) -> Tensor:
    """log p(m | patch), (B, M, N), from points and their squares (B, N, C), mean and variance (B, M, C), mass
    = N · weight (B, M, 1)."""
    precision = 1 / variance
    distance = precision @ squares.transpose(1, 2) - 2 * (mean * precision) @ points.transpose(1, 2)
    constant = (mean.square() * precision + variance.log()).sum(-1, keepdim=True)
    log_joint = mass.clamp(min=EMPTY).log() - (distance + constant) / 2
    return log_joint - log_joint.logsumexp(1, keepdim=True)
