"""Does a cluster's number say what happens without the cluster? True ablation (attention to it switched off,
PyTorch) against `effect` and `share`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from export.gradients import biased, export_gradients
from export.paca.layout import to_tokens
from export.paca.model import PaCaViT, attend_explicit, use_attention
from service import explain
from service.engine import Device, GradientEngine

from .baselines import Reference, attentions
from .data import Picture
from .metrics import spearman, summary
from .served import Served

OFF = -1e4  # added to every query's score of a cluster: its weight becomes 0


def ablation(reference: Reference, picture: np.ndarray, target: int, stage: int) -> np.ndarray:
    """(M,) what the logit of `target` loses when each cluster of `stage` alone is switched off."""
    model = reference.model
    count = model.config.stages[stage - 1].clusters
    image = reference.image(picture[None])
    use_attention(model, attend_explicit)
    with torch.no_grad():
        whole = float(model(image)[0, target])
        for attention in attentions(model.get_submodule(f"stage{stage}")):
            attention.attend = biased(OFF * torch.eye(count))
        without = model(image.expand(count, -1, -1, -1))[:, target].numpy()
    use_attention(model, attend_explicit)
    return whole - without


def rows(served: Served, reference: Reference, pictures: Sequence[Picture]) -> list[dict[str, object]]:
    """One row a clustered stage: Spearman over its clusters, mean over pictures."""
    stages = [s.stage for s in served.manifest.clustered_stages]
    effects = _Effects(reference.model)
    found: dict[int, list[tuple[float, float, float]]] = {stage: [] for stage in stages}
    for picture in pictures:
        seen = served.see(picture.pixels)
        weights = explain.class_weights(len(seen.logits), picture.label)
        cam = explain.contributions(
            seen.arrays["tokens"], served.manifest.stages[-1].grid, served.head, weights
        )
        guess = effects(reference, picture.pixels, weights)
        for stage in stages:
            truth = ablation(reference, picture.pixels, picture.label, stage)
            share = explain.shares(cam, seen.arrays[f"assignment_{stage}"])
            found[stage].append(
                (spearman(guess[stage], truth), spearman(share, truth), float(np.abs(truth).max()))
            )
    table = []
    for stage, values in found.items():
        effect, share, largest = (summary(list(column)) for column in zip(*values, strict=True))
        table.append(
            {
                "stage": stage,
                "photos": len(values),
                "effect": effect[0],
                "effect se": effect[1],
                "share": share[0],
                "share se": share[1],
                "largest change of the logit": largest[0],
            }
        )
    return table


class _Effects:
    """The effects of every stage, through an explain.onnx that starts at the patch embedding, as `paca
    export` writes and verifies them."""

    def __init__(self, model: PaCaViT) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "explain.onnx"
            export_gradients(model, 0, path, batches=(1, 3))
            self._engine = GradientEngine(path, Device("cpu", threads=1))

    def __call__(
        self, reference: Reference, picture: np.ndarray, weights: np.ndarray
    ) -> dict[int, np.ndarray]:
        with torch.no_grad():
            features = (
                to_tokens(reference.model.patch_embed(reference.image(picture[None]))).contiguous().numpy()
            )
        out = self._engine.run(features, weights[None])
        return {
            int(name.removeprefix("effect_")): values[0]
            for name, values in out.items()
            if name.startswith("effect_")
        }
