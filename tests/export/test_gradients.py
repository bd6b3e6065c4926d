"""explain.onnx against torch: the same maps and effects on inputs that tracing never saw, at any batch size,
or no file at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from export import gradients, rounding
from export.gradients import Gradients, biased, export_gradients
from export.paca import PaCaConfig, PaCaViT, StageConfig
from service import explain
from service.artifact import Head
from service.engine import GradientEngine
from service.errors import BadArtifact

CLASSES = 7


def network(*stages: StageConfig, seed: int = 5, **config: Any) -> PaCaViT:
    """An untrained network whose weights are large enough for attention to be uneven."""
    torch.manual_seed(seed)
    model = PaCaViT(PaCaConfig("tiny", stages, num_classes=CLASSES, patch_size=2, **config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Such small tensors are slower on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> PaCaViT:
    """Stage 1 renews its clusters in its second block; 44 px: grids of 22, 11 and 6."""
    return network(
        StageConfig(10, 2, 2, 5, cluster_every=1),
        StageConfig(14, 1, 7, 3),
        StageConfig(22, 1, 11),
        image_size=44,
    )


@pytest.fixture(scope="module")
def written(model: PaCaViT, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    path = tmp_path_factory.mktemp("gradients") / "explain.onnx"
    return path, export_gradients(model, 1, path)


def picture(batch: int = 2, side: int = 44, seed: int = 11) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def one_hot(*classes: int) -> np.ndarray:
    return np.eye(CLASSES, dtype=np.float32)[list(classes)]


def test_the_report_says_what_the_file_holds(written: tuple[Path, dict]):
    path, report = written
    assert (report["stage"], report["maps"], report["effects"]) == (1, [1, 2], [2])
    assert list(GradientEngine(path).outputs) == report["outputs"] == ["map_1", "map_2", "effect_2"]
    assert max(report["errors"].values()) < 1e-4
    assert report["bytes"] == path.stat().st_size


def test_maps_are_token_times_gradient_summed_over_channels(model: PaCaViT, written: tuple[Path, dict]):
    """Against hooks on the untouched model, with its own attention."""
    kept: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            output.retain_grad()
            kept[name] = output

        return hook

    hooks = [getattr(model, f"norm{s}").register_forward_hook(keep(f"map_{s}")) for s in (1, 2)]
    try:
        logits = model(picture(3).requires_grad_())
        (logits[0, 4] + logits[1, 0] + logits[2, 2] - logits[2, 6]).backward()
    finally:
        for hook in hooks:
            hook.remove()
    weights = np.concatenate([one_hot(4, 0), one_hot(2) - one_hot(6)])
    found = GradientEngine(written[0]).run(kept["map_1"].detach().numpy(), weights)
    for name, side in (("map_1", 22), ("map_2", 11)):
        expected = (kept[name] * kept[name].grad).sum(-1).detach().numpy().reshape(3, side, side)
        np.testing.assert_allclose(found[name], expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("batch", [1, 2, 9])
def test_a_picture_gets_the_same_answer_in_any_batch(model: PaCaViT, written: tuple[Path, dict], batch: int):
    engine = GradientEngine(written[0])
    with torch.no_grad():
        features = model.features(picture(9)).tokens[0].contiguous().numpy()[:batch]
    weights = one_hot(*(i % CLASSES for i in range(batch)))
    together = engine.run(features, weights)
    alone = engine.run(features[-1:], weights[-1:])
    for name, values in together.items():
        np.testing.assert_allclose(values[-1:], alone[name], atol=1e-5 * np.abs(values).max())


def test_a_contrast_is_the_difference_of_its_two_classes(model: PaCaViT, written: tuple[Path, dict]):
    with torch.no_grad():
        features = np.repeat(model.features(picture(1)).tokens[0].contiguous().numpy(), 4, 0)
    weights = np.concatenate([one_hot(3, 5), one_hot(3) - one_hot(5), one_hot(5) - one_hot(3)])
    for values in GradientEngine(written[0]).run(features, weights).values():
        np.testing.assert_allclose(values[2], values[0] - values[1], atol=1e-5 * np.abs(values).max())
        np.testing.assert_allclose(values[2], -values[3], atol=1e-5 * np.abs(values).max())


@pytest.mark.parametrize(("start", "stage"), [(0, 1), (0, 2), (1, 2)])
def test_the_effect_is_the_slope_of_the_logit_when_a_cluster_gets_more_attention(
    model: PaCaViT, start: int, stage: int
):
    """Against finite differences in float64; in stage 1 only the block that uses the shown assignment
    counts."""
    graph = Gradients(model.double(), start).double()
    model.float()
    image = picture(1).double()
    with torch.no_grad():
        features = (
            graph.model.features(image).tokens[0]
            if start
            else graph.model.patch_embed(image).flatten(2).transpose(1, 2)
        )
    found = dict(
        zip(graph.output_names, graph(features, torch.eye(CLASSES, dtype=torch.float64)[[4]]), strict=True)
    )[f"effect_{stage}"][0]
    reader = getattr(graph.model, f"stage{stage}")[-1].attn
    clusters, step = len(found), 1e-4

    def logit(beta: Tensor) -> Tensor:
        reader.attend = biased(beta)
        with torch.no_grad():
            return graph.model(image.expand(len(beta), -1, -1, -1))[:, 4]

    nudges = step * torch.eye(clusters, dtype=torch.float64)
    slope = (logit(nudges) - logit(-nudges)) / (2 * step)
    torch.testing.assert_close(found, slope, rtol=1e-6, atol=1e-9)


def test_the_contributions_are_the_gradient_map_of_the_last_norm(model: PaCaViT):
    tokens = model.features(picture(1)).tokens[-1].detach().requires_grad_()
    logits = model.classify(tokens)
    (gradient,) = torch.autograd.grad(logits[0, 2], tokens)
    head = Head(model.head.weight.detach().numpy(), model.head.bias.detach().numpy())
    cam = explain.contributions(tokens[0].detach().numpy(), (6, 6), head, explain.class_weights(CLASSES, 2))
    torch.testing.assert_close(
        torch.from_numpy(cam).flatten(), (tokens * gradient).sum(-1)[0].detach(), rtol=1e-4, atol=1e-6
    )


def test_gradients_pass_through_a_gate(tmp_path: Path):
    gated = network(StageConfig(10, 1, 2, 5), StageConfig(14, 1, 7), image_size=20, pool="gated")
    report = export_gradients(gated, 1, tmp_path / "explain.onnx")
    assert max(report["errors"].values()) < 1e-4


def test_a_network_with_a_teacher_starts_at_the_patch_embedding(tmp_path: Path):
    stages = StageConfig(6, 1, 2, 5, "teacher"), StageConfig(10, 1, 5, 3, "teacher")
    model = network(*stages, image_size=18, teacher_depths=(1, 1))
    with pytest.raises(NotImplementedError, match="only start at stage 0"):
        export_gradients(model, 1, tmp_path / "explain.onnx")
    report = export_gradients(model, 0, tmp_path / "explain.onnx", batches=(1, 2))
    assert report["outputs"] == ["map_1", "effect_1", "effect_2"]


@pytest.mark.parametrize("stage", [-1, 3, 4])
def test_there_is_nothing_to_explain_after_the_last_stage(model: PaCaViT, tmp_path: Path, stage: int):
    with pytest.raises(ValueError, match="can start after stage 0 to 2"):
        export_gradients(model, stage, tmp_path / "explain.onnx")


def test_differences_no_larger_than_float32s_own_are_allowed(
    model: PaCaViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: tuple[Path, dict]
):
    monkeypatch.setattr(gradients, "TOLERANCE", 1e-9)  # below what float32 can hold
    monkeypatch.setattr(rounding, "FACTOR", 40)  # at such sizes one lucky sum of the processor decides
    errors = gradients.verify(model, 1, written[0], (1, 3))
    assert 1e-9 < max(errors.values()) < 1e-4
    monkeypatch.setattr(rounding, "FACTOR", 0)
    with pytest.raises(BadArtifact, match="away from autograd, allowed is 1e-09"):
        gradients.verify(model, 1, written[0], (1, 3))


def test_a_file_that_differs_is_not_written(
    model: PaCaViT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: tuple[Path, dict]
):
    import onnx

    broken = onnx.load(written[0])
    for tensor in broken.graph.initializer:
        if "head.weight" in tensor.name or list(tensor.dims) == [CLASSES, 22]:
            tensor.CopyFrom(
                onnx.numpy_helper.from_array(1.01 * onnx.numpy_helper.to_array(tensor), tensor.name)
            )
    monkeypatch.setattr(gradients, "_trace", lambda graph: broken)
    with pytest.raises(BadArtifact, match="away from autograd"):
        export_gradients(model, 1, tmp_path / "explain.onnx")
    assert list(tmp_path.iterdir()) == []


def test_effects_of_clusters_that_the_next_stage_reads_are_those_on_its_attention(tmp_path: Path) -> None:
    competing = StageConfig(14, 1, 7, 4, normalise="clusters")
    last = StageConfig(22, 2, 11, 4, normalise="clusters", source="previous")
    model = network(StageConfig(10, 1, 2, 3), competing, last, image_size=44, pool="cluster")
    report = export_gradients(model, 2, tmp_path / "explain.onnx")
    assert report["outputs"] == ["map_2", "effect_2"]
    assert max(report["errors"].values()) < 1e-4
    earlier = Gradients(model, 1)
    assert earlier.output_names == ["map_1", "map_2", "effect_2"]
