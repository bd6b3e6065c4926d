"""PaCa-ViT in PyTorch, in the order of the paper (Grainger et al., CVPR 2023, arXiv 2203.11987).

The heart is `ClusterAttention.forward`: patches attend to M clusters instead of to all N patches. Parameter
names are upstream's, so published checkpoints load strictly. Sizes come from `config.py`, the ways to compute
an assignment from `clustering/`. Nothing here knows ONNX: `export.attention_node` swaps
`ClusterAttention.attend` and `export.lowering` rewrites layouts, both on a copy.

Symbols: B batch, N patches of a grid (H, W) in row-major order, C channels, M clusters, h heads, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .clustering import Clusters, build_clustering
from .clustering.teacher import ClusteringTeacher
from .config import PaCaConfig, StageConfig, variant
from .layout import Grid, LayerNorm2d, to_map, to_tokens

Attend = Callable[[Tensor, Tensor, Tensor, int], Tensor]
EPS = 1e-6  # of every LayerNorm in the trunk


@dataclass
class Features:
    """What one forward pass computes on the way to the logits; lists have one entry a stage.

    tokens[s]: (B, N_s, C_s), normed, the last ones gated too where the config says so. assignments[s]: (B, M,
    N_s), each row summing to 1 over patches, of the last clustering on the stage's grid; None where there is
    none. memberships[s]: the same as P(cluster | patch), where clusters compete. grids[s]: (H_s, W_s).
    shares: (B, N), how much each last patch counts in the mean; sums to 1. ungated: the last tokens before
    the gate.
    """

    tokens: list[Tensor] = field(default_factory=list)
    assignments: list[Tensor | None] = field(default_factory=list)
    memberships: list[Tensor | None] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    shares: Tensor = field(default_factory=lambda: torch.empty(0))
    ungated: Tensor = field(default_factory=lambda: torch.empty(0))

    def show(self, stage: int, clusters: Clusters | None) -> None:
        """Puts `clusters` where those of `stage` (from 0) stand."""
        self.assignments[stage], self.memberships[stage] = clusters or (None, None)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Multi-head softmax(q kᵀ / sqrt(d)) v. q: (B, N, C); k, v: (B, M, C); returns (B, N, C)."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))  # (B, h, N or M, d)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def attend_explicit(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """`attend` written out as two matrix products and a softmax: where its backward must be traced,
    and 1.6x faster to train on CPU (docs/decisions.md)."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1)  # (B, h, N, M)
    return (weights.to(v.dtype) @ v).transpose(1, 2).flatten(2)


def use_attention(model: nn.Module, function: Attend) -> None:
    """Makes everything in `model` that attends do so with `function`, in place."""
    for module in model.modules():
        if isinstance(module, Attending):
            module.attend = function


class Attending(nn.Module):
    """Something with an attention whose computation can be exchanged."""

    attend: Attend

    def __init__(self) -> None:
        super().__init__()
        self.attend = attend


class ClusterAttention(Attending):
    """Patch-to-cluster attention (paper, eq. 3-6):

        z = Clustering(x)              (B, M, N)   each cluster a distribution over the N patches
        c = LayerNorm(z x)             (B, M, C)   M cluster tokens
        y = Attention(q(x), k(c), v(c)) (B, N, C)  cost N·M instead of N·N

    A block without a clustering net of its own uses the clusters it is given. With clusters = 0 keys and
    values are the patches.
    """

    def __init__(self, stage: StageConfig, owns_clustering: bool) -> None:
        super().__init__()
        dim = stage.dim
        self.heads = stage.heads
        if stage.clusters:
            self.cluster_norm = nn.LayerNorm(dim, eps=EPS)
        if owns_clustering:
            self.clustering = build_clustering(stage.clustering, dim, stage.clusters, stage.competes)
        self.clusters = stage.clusters
        self.competing = stage.competes
        self.owns_clustering = owns_clustering
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, grid: Grid, given: Clusters | None) -> tuple[Tensor, Clusters | None]:
        if self.owns_clustering:
            z = self.clustering(x, grid)  # (B, M, N)
            given = Clusters.competing(z) if self.competing else Clusters(z)
        if self.clusters:
            assert given is not None
            c = self.cluster_norm(given.assignment.to(x.dtype) @ x)  # (B, M, C)
        else:
            c = x  # (B, N, C)
        return self.proj(self.attend(self.q(x), self.k(c), self.v(c), self.heads)), given


class DepthwiseShortcut(nn.Module):
    """u + DepthwiseConv3x3(u) on the grid; the shortcut comes before the activation."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, u: Tensor) -> Tensor:
        return self.dwconv(u) + u


class Mlp(nn.Module):
    """fc2(GELU(u + DWConv(u))), u = fc1(x). x: (B, N, C)."""

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__()
        hidden = int(dim * ratio)
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = DepthwiseShortcut(hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        u = self.dwconv(to_map(self.fc1(x), grid))  # (B, 4C, H, W)
        return self.fc2(F.gelu(to_tokens(u)))


class DropPath(nn.Module):
    """Stochastic depth: in training, drops the residual branch of a sample with probability `rate` (Huang et
    al. 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return x
        keep = torch.rand(x.shape[0], 1, 1, device=x.device) >= self.rate
        return x * keep.to(x.dtype) / (1 - self.rate)


class Block(nn.Module):
    """x = x + PaCa(norm(x));  x = x + MLP(norm(x))."""

    def __init__(self, stage: StageConfig, owns_clustering: bool, drop_path: float) -> None:
        super().__init__()
        self.norm1_before = nn.LayerNorm(stage.dim, eps=EPS)
        self.attn = ClusterAttention(stage, owns_clustering)
        self.norm2_before = nn.LayerNorm(stage.dim, eps=EPS)
        self.mlp = Mlp(stage.dim, stage.mlp_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, grid: Grid, given: Clusters | None) -> tuple[Tensor, Clusters | None]:
        y, clusters = self.attn(self.norm1_before(x), grid, given)
        x = x + self.drop_path(y)
        return x + self.drop_path(self.mlp(self.norm2_before(x), grid)), clusters


class Stage(nn.ModuleList):
    """The blocks of one grid; the clusters are handed from block to block."""

    def __init__(self, stage: StageConfig, drop_paths: list[float]) -> None:
        super().__init__(Block(stage, stage.owns_clustering(i), rate) for i, rate in enumerate(drop_paths))

    def forward(self, x: Tensor, grid: Grid, given: Clusters | None) -> tuple[Tensor, Clusters | None]:
        for block in self:
            x, given = block(x, grid, given)
        return x, given


class Transition(nn.Module):
    """Halves the grid between stages: one 3x3 stride-2 convolution, then LayerNorm over channels."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, out_dim, 3, stride=2, padding=1)
        self.norm = LayerNorm2d(out_dim, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


class PatchEmbed(nn.Module):
    """Image (B, 3, H, W) → first grid: log2(patch) stride-2 3x3 convolutions, widths doubling up to `dim`,
    then LayerNorm over channels."""

    def __init__(self, in_channels: int, dim: int, patch_size: int, stem: str) -> None:
        super().__init__()
        steps = patch_size.bit_length() - 1
        widths = [in_channels, *(dim >> (steps - 1 - i) for i in range(steps))]
        layers: list[nn.Module] = []
        for i in range(steps):
            layers.append(nn.Conv2d(widths[i], widths[i + 1], 3, stride=2, padding=1))
            if stem == "conv_norm" and i < steps - 1:
                layers += [nn.BatchNorm2d(widths[i + 1]), nn.GELU()]
        self.proj: nn.Module = nn.Sequential(*layers) if len(layers) > 1 else layers[0]
        self.norm = LayerNorm2d(dim, eps=EPS)

    def forward(self, image: Tensor) -> Tensor:
        return self.norm(self.proj(image))


class GatedPool(nn.Module):
    """Lets patches keep silent: x_n → N a_n x_n with a = softmax over the N patches of a learned score
    (attention-based pooling, Ilse et al. 2018).

    The mean over patches then is sum_n a_n x_n, so logits stay an exact sum of token contributions.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: (B, N, C) → gated x (B, N, C) and the shares a (B, N)."""
        shares = self.score(x).softmax(1)  # (B, N, 1)
        return x * (shares * x.shape[1]), shares[..., 0]


class ClusterPool(nn.Module):
    """Lets clusters keep silent, as `GatedPool` does patches: a = sum_m w_m z_m. The weights w are a softmax
    over clusters of a learned score of each one's token plus the logarithm of its size.

    Hence a_n is proportional to sum_m P(m | n) exp(score_m): a patch speaks as loud as its clusters do.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.cluster_score = nn.Linear(dim, 1)

    def forward(self, x: Tensor, clusters: Clusters) -> tuple[Tensor, Tensor]:
        """x: (B, N, C) → gated x (B, N, C) and the shares a (B, N)."""
        z, membership = clusters
        assert membership is not None
        size = membership.mean(-1, keepdim=True).clamp(min=1e-9)  # (B, M, 1)
        weights = (self.cluster_score(z.to(x.dtype) @ x).float() + size.log()).softmax(1)
        shares = (weights.transpose(1, 2) @ z).to(x.dtype)  # (B, 1, N)
        return x * (shares.transpose(1, 2) * x.shape[1]), shares[:, 0]


def average(x: Tensor, grid: Grid) -> Tensor:
    """(B, M, H, W) → (B, M, ceil(H / 2), ceil(W / 2)): means over 2x2 cells, cut off at the border."""
    return F.avg_pool2d(x, 2, ceil_mode=True)


class PaCaViT(nn.Module):
    """The whole classifier: normalised image (B, 3, H, W) → logits (B, K). Any H, W of at least `patch_size`
    times two per later stage runs."""

    def __init__(self, config: PaCaConfig) -> None:
        super().__init__()
        self.config = config
        dims = [stage.dim for stage in config.stages]
        self.patch_embed = PatchEmbed(config.in_channels, dims[0], config.patch_size, config.stem)
        if config.teacher_depths:
            clusters = [stage.clusters for stage in config.stages]
            self.paca_teacher = ClusteringTeacher(dims, list(config.teacher_depths), clusters)
        rates = [config.drop_path * i / max(config.blocks - 1, 1) for i in range(config.blocks)]
        for i, stage in enumerate(config.stages, 1):
            setattr(self, f"stage{i}", Stage(stage, [rates.pop(0) for _ in range(stage.depth)]))
            setattr(self, f"norm{i}", nn.LayerNorm(stage.dim, eps=EPS))
            if stage.source == "previous":
                net = build_clustering(stage.clustering, dims[i - 2], stage.clusters, stage.competes)
                setattr(self, f"clustering{i}", net)
            if i < len(dims):
                setattr(self, f"transition{i}", Transition(stage.dim, dims[i]))
        if config.pool != "mean":
            self.pool = GatedPool(dims[-1]) if config.pool == "gated" else ClusterPool(dims[-1])
        self.average: Callable[[Tensor, Grid], Tensor] = average
        self.head = nn.Linear(dims[-1], config.num_classes)
        self.apply(_initialise)

    def forward(self, image: Tensor) -> Tensor:
        return self.classify(self.features(image).tokens[-1])

    def classify(self, tokens: Tensor) -> Tensor:
        """Last tokens (B, N, C) → logits (B, K): mean over patches, then the linear head. Hence logits are a
        sum of token contributions."""
        return self.head(tokens.mean(1))

    def features(self, image: Tensor) -> Features:
        """Every stage's tokens, assignment and grid; the logits are `classify(tokens[-1])`."""
        return self.tail(self.patch_embed(image), first=1)

    def after(self, tokens: Tensor, stage: int, grid: Grid) -> Features:
        """The network after `stage`, given that stage's normed tokens (B, N, C) on `grid`; stage 0 is the
        patch embedding."""
        x = to_map(tokens, grid)
        return self.tail(getattr(self, f"transition{stage}")(x) if stage else x, stage + 1, (tokens, grid))

    def tail(self, x: Tensor, first: int, before: tuple[Tensor, Grid] | None = None) -> Features:
        """The network from stage `first` (counted from 1) on, given that stage's input map (B, C, H, W).
        before: normed tokens and grid of the stage before."""
        out = Features()
        teacher_maps, teacher_assignments = [None] * len(self.config.stages), [None] * len(self.config.stages)
        if self.config.teacher_depths:
            if first != 1:
                raise ValueError("with a teacher the network can only start at stage 1")
            teacher_maps, teacher_assignments = self.paca_teacher(x)
        for i, stage in enumerate(self.config.stages[first - 1 :], first):
            grid = (x.shape[-2], x.shape[-1])
            z = teacher_assignments[i - 1]
            given = None if z is None else Clusters(z)
            if stage.source == "previous":
                assert before is not None
                shown, given = self._regroup(i, *before)
                if i > first:
                    out.show(i - 1 - first, shown)
            tokens, clusters = getattr(self, f"stage{i}")(to_tokens(x), grid, given)
            if (taught := teacher_maps[i - 1]) is not None:
                tokens = tokens + to_tokens(taught)
            tokens = getattr(self, f"norm{i}")(tokens)
            out.tokens.append(tokens)
            out.assignments.append(None)
            out.memberships.append(None)
            if stage.source == "own":
                out.show(i - first, clusters)
            out.grids.append(grid)
            before = tokens, grid
            if i < len(self.config.stages):
                x = getattr(self, f"transition{i}")(to_map(tokens, grid))
        out.ungated = tokens
        if self.config.pool == "gated":
            out.tokens[-1], out.shares = self.pool(tokens)
        elif self.config.pool == "cluster":
            out.tokens[-1], out.shares = self.pool(tokens, clusters)
        else:
            out.shares = tokens.new_full(tokens.shape[:2], 1 / tokens.shape[1])
        return out

    def _regroup(self, stage: int, tokens: Tensor, grid: Grid) -> tuple[Clusters, Clusters]:
        """The clusters that `stage` makes of the tokens of the stage before: on that grid, and on its own."""
        found = Clusters.competing(getattr(self, f"clustering{stage}")(tokens, grid))
        assert found.membership is not None
        coarse = self.average(found.membership.unflatten(2, grid), grid)
        return found, Clusters.competing(coarse.flatten(2))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2.0 / fan_out) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def create(name: str, **changes: object) -> PaCaViT:
    """A freshly initialised network of a named variant; `changes` replace config fields, e.g.
    num_classes=10."""
    return PaCaViT(variant(name, **changes))
