"""Rewrites a network into the form that runs fastest, on a copy: same functions, same numbers to rounding,
other layouts and folded constants.

Only algebra that holds exactly is used, each rewrite with its reason beside it; none touches `paca.model`,
whose names must stay those of the checkpoints. What the exporter does with the result is `trace`'s business.
What each rewrite gains: docs/performance.md.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from .paca.clustering.teacher import ClusteringTeacher
from .paca.layout import Grid, to_map, to_tokens
from .paca.model import Attending, ClusterAttention, Mlp, PaCaViT, PatchEmbed
from .paca.segmentation import ConvNorm, PaCaHead, PaCaSegmenter, Segmentation, resize


@torch.no_grad()
def lower(model: PaCaViT, size: tuple[int, int] | None = None) -> PaCaViT:
    """A deep copy of `model`, in evaluation mode and without gradients, computing the same `features` and
    `classify` in fewer, faster steps.

    size: (H, W) of the picture where it is known beforehand; the copy then runs at that size only. None: the
    copy runs at any size.
    """
    lowered = copy.deepcopy(model).eval().requires_grad_(False)
    lowered.set_submodule("patch_embed", _lower_stem(lowered.patch_embed, size))
    if size and any(stage.source == "previous" for stage in model.config.stages):
        lowered.average = MatrixAverage(model.config.grids(size))
    for name, module in list(lowered.named_modules()):
        if isinstance(module, Mlp):
            lowered.set_submodule(name, MapMlp(module))
        elif isinstance(module, ClusterAttention):
            _drop_biases(module)
        elif isinstance(module, ClusteringTeacher):
            _lower_teacher(module, model.config.grids(size) if size else ())
    return lowered


@torch.no_grad()
def lower_segmenter(model: PaCaSegmenter) -> PaCaSegmenter:
    """As `lower`, of a segmenter; the copy runs at any size."""
    lowered = copy.deepcopy(model).eval().requires_grad_(False)
    lowered.backbone = lower(model.backbone)
    lowered.set_submodule("decode_head", LevelHead(lowered.decode_head))
    return lowered


class LevelHead(Attending):
    """`PaCaHead` with its BatchNorms folded, and its queries and clusters computed on each stage's own grid.

    A 1x1 convolution commutes with a bilinear resize, whose weights sum to 1. So what the head convolves on
    the finest grid, four stages side by side, is convolved stage by stage, resized and added: a third of the
    work.
    """

    def __init__(self, head: PaCaHead) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_plain(conv) for conv in head.convs)
        width = head.conv_seg.in_channels
        q, clustering = _plain(head.q[0]), _plain(head.clustering[0])
        q.weight.mul_(width**0.5)  # ReLU keeps a positive factor; `attend` divides by it
        q.bias.mul_(width**0.5)  # type: ignore[union-attr]
        both = torch.cat([q.weight, clustering.weight])
        self.levels = nn.ModuleList()
        for i, weight in enumerate(both.split(width, 1)):
            level = nn.Conv2d(width, 2 * width, 1, bias=i == 0)
            level.weight.copy_(weight)
            if level.bias is not None:
                level.bias.copy_(torch.cat([q.bias, clustering.bias]))  # type: ignore[list-item]
            self.levels.append(level)
        self.clustering = head.clustering[1]
        self.k, self.v = _fold_linear(head.k), _fold_linear(head.v)
        self.proj, self.conv_seg = _plain(head.proj), head.conv_seg
        self.requires_grad_(False)

    def forward(self, maps: list[Tensor]) -> Segmentation:
        grid = (maps[0].shape[-2], maps[0].shape[-1])
        own = [F.relu(conv(x)) for conv, x in zip(self.convs, maps, strict=True)]
        x = torch.cat([own[0], *(resize(y, grid) for y in own[1:])], 1)
        both, *rest = (level(y) for level, y in zip(self.levels, own, strict=True))
        for y in rest:
            both = both + resize(y, grid)
        q, clusters = F.relu(both).chunk(2, 1)
        scores = self.clustering(clusters)
        z = scores.flatten(2).softmax(-1)
        c = z @ to_tokens(x)
        o = self.attend(to_tokens(q), F.relu(self.k(c)), F.relu(self.v(c)), 1)
        return Segmentation(self.conv_seg(F.relu(self.proj(to_map(o, grid)))), scores, z)


def _plain(conv: nn.Module) -> nn.Conv2d:
    """Convolution and norm of a `ConvNorm` in one; the ReLU stays with the caller."""
    assert isinstance(conv, ConvNorm)
    return fuse_conv_bn_eval(conv.conv, conv.bn)


def _fold_linear(layers: nn.Sequential) -> nn.Linear:
    """Linear and BatchNorm of `linear_norm` in one; the ReLU stays with the caller."""
    linear, _, norm, *_ = layers
    assert isinstance(linear, nn.Linear)
    assert isinstance(norm, nn.BatchNorm1d)
    return fuse_linear_bn_eval(linear, norm)


class MapMlp(nn.Module):
    """`Mlp` wholly on the map: C channels change layout instead of 4C, and both linear layers are 1x1
    convolutions. x: (B, N, C)."""

    def __init__(self, mlp: Mlp) -> None:
        super().__init__()
        self.fc1 = _pointwise(mlp.fc1)
        self.dwconv = _absorb_shortcut(mlp.dwconv.dwconv)
        self.fc2 = _pointwise(mlp.fc2)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        return to_tokens(self.fc2(F.gelu(self.dwconv(self.fc1(to_map(x, grid))))))


class OneStepStem(nn.Module):
    """The paper's two stride-2 convolutions as one of 7x7 with stride 4: nothing lies between them, so their
    kernels compose, at 30 % of the work.

    What the inner bias adds depends on how near the border is, because the outer convolution pads with zeros:
    it is kept as a map (H, W, C).
    """

    bias: Tensor

    def __init__(self, inner: nn.Conv2d, outer: nn.Conv2d, norm: nn.LayerNorm, size: tuple[int, int]) -> None:
        super().__init__()
        # Every tap of the outer kernel places a copy of the inner one, two pixels further: 3 + 2 * (3 - 1) =
        # 7 taps.
        kernel = F.conv_transpose2d(outer.weight.double(), inner.weight.double(), stride=2).float()
        self.conv = nn.Conv2d(inner.in_channels, outer.out_channels, 7, stride=4, padding=3, bias=False)
        self.conv.weight = nn.Parameter(kernel, requires_grad=False)
        dark = torch.zeros(1, inner.in_channels, *size)
        self.register_buffer("bias", outer(inner(dark))[0].permute(1, 2, 0).contiguous())
        self.norm = norm

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv(image).permute(0, 2, 3, 1) + self.bias
        return self.norm(x.permute(0, 3, 1, 2))


def _lower_stem(stem: PatchEmbed, size: tuple[int, int] | None) -> nn.Module:
    """The stem in one step where that is exact, else with its BatchNorms folded into the convolutions before
    them."""
    match list(stem.proj) if isinstance(stem.proj, nn.Sequential) else [stem.proj]:
        case [nn.Conv2d() as inner, nn.Conv2d() as outer] if size and all(side % 4 != 2 for side in size):
            return OneStepStem(
                inner, outer, stem.norm, size
            )  # with side % 4 == 2 the last row would see pixels the two steps do not see
        case layers:
            stem.proj = nn.Sequential(*_fold_norms(layers))
            return stem


def _fold_norms(layers: list[nn.Module]) -> Iterator[nn.Module]:
    """A BatchNorm right after a convolution is a scale and a shift of its output."""
    for layer, following in itertools.zip_longest(layers, layers[1:]):
        if isinstance(layer, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
            yield fuse_conv_bn_eval(layer, following)
        elif not isinstance(layer, nn.BatchNorm2d):
            yield layer


def _drop_biases(attention: ClusterAttention) -> None:
    """The keys' bias adds the same to all of a query's scores, which softmax does not see; the values' bias
    passes through, since a query's weights sum to 1, so the output projection can add it."""
    attention.proj.bias.add_(attention.proj.weight @ attention.v.bias)
    for linear in (attention.k, attention.v):
        linear.register_parameter("bias", None)


class MatrixResize(nn.Module):
    """Bilinear resize between the known neighbours of `grids` as two matrix products: nothing about the sizes
    is left to run time."""

    def __init__(self, grids: tuple[Grid, ...]) -> None:
        super().__init__()
        for size, small in itertools.pairwise(grids):
            for to, fro in zip(size, small, strict=True):
                self.register_buffer(
                    f"from{fro}to{to}",
                    F.interpolate(torch.eye(fro)[None], size=to, mode="linear", align_corners=False)[0],
                )

    def forward(self, x: Tensor, size: Grid) -> Tensor:
        rows, columns = (
            getattr(self, f"from{fro}to{to}") for fro, to in zip(x.shape[-2:], size, strict=True)
        )
        return rows.T @ (x @ columns)


class MatrixAverage(nn.Module):
    """`model.average` of the known `grids` as two matrix products: the gradient graph then needs no backward
    of a pooling."""

    def __init__(self, grids: tuple[Grid, ...]) -> None:
        super().__init__()
        for side in {side for grid in grids for side in grid}:
            self.register_buffer(f"from{side}", F.avg_pool1d(torch.eye(side)[None], 2, ceil_mode=True)[0])

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        rows, columns = (getattr(self, f"from{side}") for side in grid)
        return rows.T @ (x @ columns)


def _lower_teacher(teacher: ClusteringTeacher, grids: tuple[Grid, ...]) -> None:
    """The pyramid's last BatchNorms go forward into the 1x1 convolutions that alone read them."""
    if grids:
        teacher.resize = MatrixResize(grids)
    for i in range(1, len(teacher.clusters)):
        mixer = getattr(teacher, f"fpn{i}")
        readers = [
            getattr(teacher, f"to_clusters{i}", None),
            getattr(teacher, f"lateral{i - 1}")[0] if i > 1 else None,
        ]
        for reader in filter(None, readers):
            _fold_forward(mixer[3], reader)
        mixer[3] = nn.Identity()


def _fold_forward(norm: nn.BatchNorm2d, conv: nn.Conv2d) -> None:
    """conv(norm(x)) as conv alone, for a 1x1 convolution."""
    assert norm.running_var is not None
    assert norm.running_mean is not None
    assert conv.bias is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    conv.bias += conv.weight[:, :, 0, 0] @ (norm.bias - norm.running_mean * scale)
    conv.weight *= scale[:, None, None]


def _pointwise(linear: nn.Linear) -> nn.Conv2d:
    """The 1x1 convolution that does to every position what `linear` does to every token."""
    conv = nn.Conv2d(linear.in_features, linear.out_features, 1)
    conv.weight.copy_(linear.weight[:, :, None, None])
    conv.bias.copy_(linear.bias)  # type: ignore[union-attr]
    return conv.requires_grad_(False)


def _absorb_shortcut(conv: nn.Conv2d) -> nn.Conv2d:
    """u + conv(u) as one depthwise convolution: the shortcut is one more in the centre tap."""
    rows, columns = conv.weight.shape[-2:]
    conv.weight[:, 0, rows // 2, columns // 2] += 1
    return conv
