"""PyTorch module → ONNX graph: the served graph with its input conversion, its named outputs and a dynamic
batch.

What the tracer needs lives in the `Served` wrapper; the model stays as the paper has it, and layout rewrites
are `lowering`'s. Nothing is checked here: `verify` judges the result.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import onnx
import torch
from torch import Tensor, nn

from .attention_node import attention_node
from .conversion import to_onnx
from .lowering import lower, lower_segmenter
from .paca.layout import to_tokens
from .paca.model import Attend, PaCaViT, use_attention
from .paca.segmentation import PaCaSegmenter

MAX_BATCH, MIN_SIDE, MAX_SIDE = 256, 32, 2048


class Normalising(nn.Module):
    """Takes pictures as clients send them. input_kind: of INPUTS; mean, std: of pixel values in 0..1."""

    scale: Tensor
    shift: Tensor

    def __init__(self, input_kind: str, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.input_kind = input_kind
        means, deviations = torch.tensor(mean), torch.tensor(std)
        self.register_buffer("scale", 1 / (255 * deviations[:, None, None]))
        self.register_buffer("shift", (-means / deviations)[:, None, None])

    def normalised(self, image: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) → (B, 3, H, W); a float input is that already."""
        if self.input_kind == "uint8":
            return image.permute(0, 3, 1, 2).float() * self.scale + self.shift
        return image

    @property
    def roles(self) -> dict[str, str]:
        """The graph's outputs in order, by name, with their roles in the manifest."""
        raise NotImplementedError

    @property
    def output_names(self) -> list[str]:
        return list(self.roles)

    def exact(self) -> Normalising:
        """A copy in float64, whose input is normalised already."""
        twin = copy.deepcopy(self).double().eval()
        twin.input_kind = "float32"
        return twin


class Served(Normalising):
    """What the server runs: image → (logits, tokens, assignment_s of every clustering stage, membership_s of
    every stage whose clusters compete, features of the stage where explain.onnx takes over).

    explain_stage: from 1; 0 = the patch embedding, None = no features.
    """

    def __init__(self, model: PaCaViT, input_kind: str, explain_stage: int | None) -> None:
        super().__init__(input_kind, model.config.mean, model.config.std)
        self.model = model
        self.explain_stage = explain_stage

    @property
    def roles(self) -> dict[str, str]:
        stages, shown = self.model.config.stages, self.model.config.shown
        competing = [i for i, reader in shown.items() if stages[reader - 1].competes]
        roles = {"logits": "logits", "tokens": "tokens"}
        roles |= {f"assignment_{i}": "assignment" for i in shown}
        roles |= {f"membership_{i}": "membership" for i in competing}
        return roles | ({"features": "features"} if self.explain_stage is not None else {})

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        embedded = self.model.patch_embed(self.normalised(image))
        found = self.model.tail(embedded, first=1)
        tokens = found.tokens[-1]
        maps = [
            z.unflatten(2, grid)
            for every in (found.assignments, found.memberships)
            for z, grid in zip(every, found.grids, strict=True)
            if z is not None
        ]
        starts = [to_tokens(embedded), *found.tokens]
        cut = [starts[self.explain_stage]] if self.explain_stage is not None else []
        return (self.model.classify(tokens), tokens, *maps, *cut)


class ServedSegmenter(Normalising):
    """What the server runs of a segmenter: image → (logits, assignment_0), both (B, K, H / 4, W / 4).

    assignment_0: the head's clusters, one a class; each sums to 1 over places. It lies on the way to the
    logits.
    """

    def __init__(self, model: PaCaSegmenter, input_kind: str) -> None:
        super().__init__(input_kind, model.config.backbone.mean, model.config.backbone.std)
        self.model = model

    @property
    def roles(self) -> dict[str, str]:
        return {"logits": "logits", "assignment_0": "assignment"}

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        found, _ = self.model.segment(self.normalised(image))
        return found.logits, found.assignment.unflatten(2, found.logits.shape[-2:])


def trace_segmenter(model: PaCaSegmenter, *, input_kind: str = "uint8") -> onnx.ModelProto:
    """The ONNX graph of `model` at any size: pictures keep their aspect."""
    network = lower_segmenter(model)
    use_attention(network, attention_node)
    side = model.config.backbone.image_size
    return _export(ServedSegmenter(network, input_kind).eval(), side, dynamic_size=True)


def trace(
    model: PaCaViT,
    *,
    input_kind: str = "uint8",
    dynamic_size: bool = False,
    explain_stage: int | None = None,
    attention: Attend = attention_node,
    lowered: bool = True,
) -> onnx.ModelProto:
    """The ONNX graph of `model` at its config's image size. Benchmarks may ask for another `attention` than
    one Attention node a block, and for the network's layers as they are instead of `lowered`."""
    side = model.config.image_size
    network = lower(model, size=None if dynamic_size else (side, side)) if lowered else copy.deepcopy(model)
    use_attention(network, attention)
    return _export(Served(network, input_kind, explain_stage).eval(), side, dynamic_size)


def _export(served: Normalising, side: int, dynamic_size: bool) -> onnx.ModelProto:
    uint8 = served.input_kind == "uint8"
    shape = (2, side, side, 3) if uint8 else (2, 3, side, side)
    example = torch.zeros(shape, dtype=torch.uint8 if uint8 else torch.float32)
    axes: dict[int, object] = {0: torch.export.Dim("batch", min=1, max=MAX_BATCH)}
    if dynamic_size:
        first = 1 if uint8 else 2
        axes[first] = torch.export.Dim("height", min=MIN_SIDE, max=MAX_SIDE)
        axes[first + 1] = torch.export.Dim("width", min=MIN_SIDE, max=MAX_SIDE)
    return to_onnx(served, (example,), ["image"], served.output_names, [axes])
