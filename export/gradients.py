"""Writes explain.onnx: exact gradients as an ordinary ONNX graph, so that a server without torch can answer
"which patches, which clusters?".

A function that itself calls autograd is traced; what comes out is a forward graph with the gradient's
arithmetic in it. It starts from the normed tokens of one stage (`features`, an output of the served model),
never sees the picture, and weighs the logits with `weights`, so one graph answers for one class, several, or
the difference of two. The file is compared with torch autograd on fresh inputs and not written where it
differs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from service.engine import GradientEngine
from service.errors import BadArtifact

from . import rounding
from .conversion import to_onnx
from .lowering import lower
from .paca.layout import to_tokens
from .paca.model import ClusterAttention, PaCaViT, attend_explicit, use_attention

# largest difference from autograd, relative to the largest number of the output; more only where float32
# itself is further off
TOLERANCE = 1e-4
MAX_BATCH = 64
aten = torch.ops.aten


class Gradients(nn.Module):
    """features (B, N, C) of `stage`, weights (B, K) → for z = weights · logits:

    map_s (B, H_s, W_s) of every stage from `stage` to the last but one: sum over channels of token x
    dz/dtoken (HiResCAM, Draelos & Carin 2020); effect_s (B, M) of every later stage that clusters: dz/dbeta,
    beta added to the attention scores of each cluster in all blocks that use the stage's last assignment:
    what more attention to it would do to z, to first order.
    """

    def __init__(self, model: PaCaViT, stage: int) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.stage = stage
        self.grid = model.config.grids()[max(stage, 1) - 1]
        self.maps = tuple(range(max(stage, 1), len(model.config.stages)))
        self.effects = tuple(i for i, reader in model.config.shown.items() if reader > stage)
        use_attention(self.model, attend_explicit)

    @property
    def output_names(self) -> list[str]:
        return [f"map_{s}" for s in self.maps] + [f"effect_{s}" for s in self.effects]

    def forward(self, features: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        start = features.detach().requires_grad_(True)
        betas = [
            start.new_zeros(start.shape[0], self.model.config.stages[s - 1].clusters, requires_grad=True)
            for s in self.effects
        ]
        for s, beta in zip(self.effects, betas, strict=True):
            for block in self._readers(s):
                block.attend = biased(beta)
        found = self.model.after(start, self.stage, self.grid)
        tokens = [start, *found.tokens] if self.stage else found.tokens
        use_attention(self.model, attend_explicit)
        answer = (self.model.classify(tokens[-1]) * weights).sum()
        wanted = tokens[:-1]
        gradients = torch.autograd.grad(answer, [*wanted, *betas])
        grids = [self.grid, *found.grids] if self.stage else found.grids
        maps = [
            (t.detach() * g).sum(-1).unflatten(1, grid)
            for t, g, grid in zip(wanted, gradients, grids, strict=False)
        ]
        return (*maps, *gradients[len(wanted) :])

    def _readers(self, stage: int) -> list[ClusterAttention]:
        """The attentions that use the assignment the model shows of a stage: those from the last clustering
        on."""
        reader = self.model.config.shown[stage]
        attentions = [block.attn for block in getattr(self.model, f"stage{reader}")]
        owners = [i for i, attention in enumerate(attentions) if attention.owns_clustering]
        return attentions[owners[-1] if owners else 0 :]


def biased(beta: Tensor) -> Callable[[Tensor, Tensor, Tensor, int], Tensor]:
    """`attend_explicit` with beta (B, M) added to every query's scores of each cluster, in all heads."""

    def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + beta[:, None, None]
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)

    return attend


def export_gradients(
    model: PaCaViT, stage: int, path: Path, *, batches: tuple[int, ...] = (1, 3, 8)
) -> dict[str, Any]:
    """Writes explain.onnx for `model` at its config's image size, starting after `stage` (0 = the patch
    embedding).

    Returns {"stage", "maps", "effects", "outputs", "errors": output → largest relative difference from
    autograd, "nodes", "bytes"}. Raises ValueError for a stage that cannot be the start, BadArtifact where the
    graph differs from autograd by more than 1e-4 and more than rounding explains (nothing is written then).
    """
    check_start(model, stage)
    side = model.config.image_size
    graph = Gradients(lower(model, (side, side)), stage)
    proto = _trace(graph)
    onnx.checker.check_model(proto)
    scratch = path.with_suffix(".partial")
    scratch.write_bytes(proto.SerializeToString())
    try:
        errors = verify(model, stage, scratch, batches)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    return {
        "stage": stage,
        "maps": list(graph.maps),
        "effects": list(graph.effects),
        "outputs": graph.output_names,
        "errors": errors,
        "nodes": len(proto.graph.node),
        "bytes": path.stat().st_size,
    }


def check_start(model: PaCaViT, stage: int) -> None:
    """ValueError where there is nothing to start from after `stage`, NotImplementedError where this family
    cannot start there."""
    last = len(model.config.stages)
    if not 0 <= stage < last:
        raise ValueError(
            f"the gradient graph can start after stage 0 to {last - 1}, not {stage}: the last stage's map is "
            "exact without it"
        )
    if model.config.teacher_depths and stage:
        raise NotImplementedError(
            "with a teacher the gradient graph can only start at stage 0: the teacher's assignments and maps "
            "are made from the patch embedding"
        )


def verify(model: PaCaViT, stage: int, path: Path, batches: tuple[int, ...]) -> dict[str, float]:
    """Runs the file through the server's own engine on inputs that tracing never saw: real features of random
    pictures, other batch sizes, mixed weights. Returns for each output the largest difference from torch
    autograd on the untouched model, relative to the output's largest number. BadArtifact where one is over
    the tolerance, unless autograd in float32 is itself that far from float64 on the same inputs."""
    engine = GradientEngine(path)
    reference = Gradients(model, stage)
    generator = torch.Generator().manual_seed(1)
    side, classes = model.config.image_size, model.config.num_classes
    errors = dict.fromkeys(reference.output_names, 0.0)
    allowed = dict.fromkeys(errors, TOLERANCE)
    for batch in batches:
        weights = torch.randn(batch, classes, generator=generator)
        weights[0] = F.one_hot(torch.tensor(batch % classes), classes)
        image = torch.randn(batch, model.config.in_channels, side, side, generator=generator)
        with torch.no_grad():
            features = (
                reference.model.features(image).tokens[stage - 1]
                if stage
                else to_tokens(reference.model.patch_embed(image))
            )
        found = engine.run(features.contiguous().numpy(), weights.numpy())
        expected = dict(zip(errors, (t.numpy() for t in reference(features, weights)), strict=True))
        differences = {name: _relative(found[name], want) for name, want in expected.items()}
        if not all(difference <= allowed[name] for name, difference in differences.items()):
            exact = Gradients(model, stage).double()(features.double(), weights.double())
            for (name, want), true in zip(expected.items(), exact, strict=True):
                allowed[name] = max(allowed[name], rounding.allowance(_relative(want, true.numpy())))
        for name, difference in differences.items():
            if not difference <= allowed[name]:
                raise BadArtifact(
                    f"the gradient graph's {name} is {difference:.2g} away from autograd, allowed is "
                    f"{allowed[name]:.2g}; it was not written"
                )
            errors[name] = max(errors[name], difference)
    return errors


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-30))


def _trace(graph: Gradients) -> onnx.ModelProto:
    channels, classes = graph.model.config.stages[max(graph.stage, 1) - 1].dim, graph.model.config.num_classes
    patches = graph.grid[0] * graph.grid[1]
    count = next(
        n for n in (3, 5, 7, 11) if n not in (patches, channels, classes)
    )  # sizes that are equal would be traced as one and the same
    example = torch.randn(count, patches, channels), torch.randn(count, classes)
    traced = make_fx(
        graph, decomposition_table=_decompositions(), tracing_mode="symbolic", _allow_non_fake_inputs=True
    )(*example)
    left = sorted({str(node.target) for node in traced.graph.nodes if "backward" in str(node.target)})
    assert not left, f"gradients that have no decomposition: {left}"
    batch = torch.export.Dim("batch", min=2, max=MAX_BATCH)
    return to_onnx(
        _Traced(traced), example, ["features", "weights"], graph.output_names, [{0: batch}, {0: batch}]
    )


class _Traced(nn.Module):
    def __init__(self, traced: nn.Module) -> None:
        super().__init__()
        self.traced = traced

    def forward(self, features: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.traced(features, weights))


def _decompositions() -> dict[Any, Callable[..., Any]]:
    """How the backward operators that ONNX lacks are written in operators it has."""
    backwards = [aten.native_layer_norm_backward, aten.gelu_backward, aten._softmax_backward_data]
    table: dict[Any, Callable[..., Any]] = dict(torch._decomp.get_decompositions(backwards))
    table[aten.convolution_backward.default] = _convolution_backward
    return table


def _convolution_backward(
    gradient: Tensor,
    source: Tensor,
    weight: Tensor,
    bias_sizes: list[int] | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    mask: list[bool],
) -> tuple[Tensor, None, None]:
    """With respect to the input only (parameters are frozen). Stride 1: a convolution with the kernel turned
    around, since runtimes have no fast depthwise transposed convolution; otherwise the transposed
    convolution, padded to the input's size."""
    kernel = weight.shape[2:]
    if list(stride) == [1, 1]:
        turned = (
            weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).flip(-1, -2)
        )  # (in, out / groups, kh, kw)
        around = [dilation[i] * (kernel[i] - 1) - padding[i] for i in range(2)]
        return (
            aten.convolution.default(gradient, turned, None, stride, around, dilation, False, [0, 0], groups),
            None,
            None,
        )
    rest = [
        source.shape[2 + i]
        - ((gradient.shape[2 + i] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (kernel[i] - 1) + 1)
        for i in range(2)
    ]
    return (
        aten.convolution.default(gradient, weight, None, stride, padding, dilation, True, rest, groups),
        None,
        None,
    )
