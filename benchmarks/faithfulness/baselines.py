"""The methods ours are compared with, in PyTorch on the same weights: everything that needs gradients or
attention weights, from one forward and one backward pass; integrated gradients; and the maps that never look
at the picture. Also copies of the network with random parts, for the sanity check.

T_s: tokens (N, C) after the norm of stage s (of the last stage before a gate, the layer those libraries
take); g = dz/dT_s; z the explained logit. Grad-CAM (Selvaraju et al. 2017): relu(sum_c mean_n(g) T). HiResCAM
(Draelos & Carin 2020): sum_c g T. LayerCAM (Jiang et al. 2021): relu(sum_c relu(g) T). Attention rollout
(Abnar & Zuidema 2020), through clusters: v <- (v + (v A) Z) / 2 from the last block to the first, A patches
to clusters, Z clusters to patches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from export.paca.model import ClusterAttention, Features, PaCaViT, use_attention
from service.artifact import Head, Preprocessing

from .metrics import sums
from .served import Maps, Seen, shown

STEPS = 16  # of integrated gradients


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass over B pictures: what came out of every stage, and the gradient of each
    picture's explained logit there. normed: T_s of every stage, to_tokens: its gradient."""

    image: Tensor
    features: Features
    normed: list[Tensor]
    attention: list[Tensor]
    logits: np.ndarray
    to_image: Tensor
    to_tokens: list[Tensor]


class Reference:
    """The network in PyTorch, for pictures (B, H, W, 3) uint8."""

    def __init__(self, model: PaCaViT, preprocessing: Preprocessing, maps: tuple[int, ...]) -> None:
        """maps: the stages whose gradient maps our own methods use."""
        self.model = model.eval().requires_grad_(False)
        self._preprocessing, self._maps = preprocessing, maps

    def image(self, pictures: np.ndarray) -> Tensor:
        """(B, 3, H, W), normalised."""
        return torch.from_numpy(self._preprocessing.to_float(pictures))

    def run(self, image: Tensor, weights: np.ndarray) -> Pass:
        """weights: (B, K) over the logits."""
        attention: list[Tensor] = []
        use_attention(self.model, _recording(attention))
        image = image.detach().requires_grad_(True)
        last: list[Tensor] = []
        norm = self.model.get_submodule(f"norm{len(self.model.config.stages)}")
        with norm.register_forward_hook(lambda _module, _inputs, output: last.append(output)):
            features = self.model.features(image)
        logits = self.model.classify(features.tokens[-1])
        normed = [*features.tokens[:-1], *last]
        to_image, *to_tokens = torch.autograd.grad(
            (logits * torch.from_numpy(weights)).sum(), [image, *normed]
        )
        return Pass(image.detach(), features, normed, attention, logits.detach().numpy(), to_image, to_tokens)

    def maps(self, pictures: np.ndarray, targets: np.ndarray) -> list[Maps]:
        """The baselines of each picture for its target."""
        found = self.run(
            self.image(pictures), np.eye(self.model.config.num_classes, dtype=np.float32)[targets]
        )
        cells = self.model.config.grids()[0][0]
        rows: list[Maps] = []
        rolled = self._rollout(found)
        for i in range(len(pictures)):
            maps: Maps = {}
            for name, stage in (("last", -1), ("second last", -2)):
                grid = found.features.grids[stage]
                t, g = found.normed[stage][i].detach(), found.to_tokens[stage][i]
                maps[f"Grad-CAM ({name})"] = _on(grid, (t @ g.mean(0)).relu())
                maps[f"HiResCAM ({name})"] = _on(grid, (t * g).sum(-1))
                maps[f"LayerCAM ({name})"] = _on(grid, (t * g.relu()).sum(-1).relu())
            maps["attention rollout"] = rolled[i]
            maps["input x gradient"] = sums((found.image[i] * found.to_image[i]).sum(0).numpy(), cells)
            rows.append(maps)
        return rows

    def integrated(self, picture: np.ndarray, target: int) -> np.ndarray:
        """Integrated gradients (Sundararajan et al. 2017) from the mean colour, at the middles of 16 steps,
        summed over channels and each cell."""
        image = self.image(picture[None])
        along = (torch.arange(STEPS) + 0.5)[:, None, None, None] / STEPS * image
        weights = np.zeros((STEPS, self.model.config.num_classes), np.float32)
        weights[:, target] = 1
        mean = self.run(along, weights).to_image.mean(0)
        return sums((mean * image[0]).sum(0).numpy(), self.model.config.grids()[0][0])

    def ours(self, picture: np.ndarray, target: int) -> Maps:
        """Our own rows by this network instead of the served graph: for copies with random parts."""
        image = self.image(picture[None])
        classes = self.model.config.num_classes
        found = self.run(image, np.eye(classes, dtype=np.float32)[[target]])
        arrays = {"tokens": found.features.tokens[-1][0].detach().numpy()}
        for stage, (z, grid) in enumerate(
            zip(found.features.assignments, found.features.grids, strict=True), 1
        ):
            if z is not None:
                arrays[f"assignment_{stage}"] = z[0].detach().unflatten(-1, grid).numpy()
        head = Head(self.model.head.weight.numpy(), self.model.head.bias.numpy())

        def gradient_maps(weights: np.ndarray) -> dict[int, np.ndarray]:
            run = self.run(image, weights[None])
            return {
                s: _on(
                    run.features.grids[s - 1],
                    (run.features.tokens[s - 1][0].detach() * run.to_tokens[s - 1][0]).sum(-1),
                )
                for s in self._maps
            }

        return shown(found.features.grids[-1], head, Seen(found.logits[0], arrays), target, gradient_maps)

    def randomised(self, parts: tuple[str, ...], seed: int) -> Reference:
        """A copy whose `parts` (module names) hold random weights of the spread the trained ones have."""
        model = copy.deepcopy(self.model)
        generator = torch.Generator().manual_seed(seed)
        for part in parts:
            for value in model.get_submodule(part).parameters():
                if value.ndim > 1:
                    value.copy_(torch.randn(value.shape, generator=generator) * value.std())
        return Reference(model, self._preprocessing, self._maps)

    def _rollout(self, found: Pass) -> np.ndarray:
        """(B, H_1, W_1), the same for every class; sums to 1."""
        stages = self.model.config.stages
        weights = list(found.attention)
        grids = found.features.grids
        flow = torch.full((len(found.image), grids[-1][0] * grids[-1][1]), 1 / (grids[-1][0] * grids[-1][1]))
        for s in reversed(range(len(stages))):
            z = found.features.assignments[s]
            for _ in range(stages[s].depth):
                passed = (flow[:, None] @ weights.pop())[:, 0]
                flow = (flow + (passed if z is None else (passed[:, None] @ z.detach())[:, 0])) / 2
            if s:
                up = [a // b for a, b in zip(grids[s - 1], grids[s], strict=True)]
                flow = flow.unflatten(1, grids[s]).repeat_interleave(up[0], 1).repeat_interleave(
                    up[1], 2
                ).flatten(1) / (up[0] * up[1])
        return flow.unflatten(1, grids[0]).numpy()


def blind(size: tuple[int, int], seed: int) -> Maps:
    """Maps that never saw the picture: noise, and a Gaussian on the picture's centre (sigma a quarter of its
    side)."""
    y, x = ((np.arange(n) + 0.5) / n - 0.5 for n in size)
    return {
        "random": np.random.default_rng(seed).random(size),
        "centred Gaussian": np.exp(-(y[:, None] ** 2 + x[None] ** 2) / (2 * 0.25**2)),
    }


def _recording(into: list[Tensor]) -> Callable[[Tensor, Tensor, Tensor, int], Tensor]:
    """Attention that keeps its weights, averaged over heads: (B, N, M)."""

    def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1)
        into.append(weights.detach().mean(1))
        return (weights @ v).transpose(1, 2).flatten(2)

    return attend


def _on(grid: tuple[int, int], values: Tensor) -> np.ndarray:
    return values.detach().unflatten(0, grid).numpy()


def attentions(stage: nn.Module) -> list[ClusterAttention]:
    """The attentions of a stage that use the assignment the model shows: those from its last clustering
    on."""
    found = [module for module in stage.modules() if isinstance(module, ClusterAttention)]
    owners = [i for i, attention in enumerate(found) if attention.owns_clustering]
    return found[owners[-1] if owners else 0 :]
