"""`paca train masks`, from a folder to an exported file that segments, in small."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from export.paca import PaCaConfig, PaCaViT, StageConfig
from export.pictures import DataError
from export.pipeline import Request
from export.segment import run as export
from export.training import masks
from export.training.checkpoint import save_final, save_segmenter
from export.training.mask_data import IGNORED, read_masks
from export.training.mask_evaluate import command, evaluate, is_segmenter
from export.training.masks import MaskRecipe, Material, augmented, config_for, mask_loss, model_for, start
from tests.export.segmentation_fixtures import tiny_segmenter
from tests.export.training.mask_folder import write

CLASSES = ("dark", "red", "green")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pictures")
    write(made, 12, classes=CLASSES)
    return made


@pytest.fixture(scope="module")
def begun_from(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a segmenter of four classes."""
    path = tmp_path_factory.mktemp("start") / "start.safetensors"
    save_segmenter(tiny_segmenter(), path, ("dark", "red", "green", "blue"), {})
    return path


@pytest.fixture(scope="module")
def trained(folder: Path, begun_from: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(the final file, what was printed)."""
    said = Console(file=io.StringIO(), width=200)
    out = tmp_path_factory.mktemp("run")
    final = masks.run(folder, out, epochs=2, start_from=begun_from, console=said)
    return final, said.file.getvalue()  # type: ignore[attr-defined]


def test_a_training_ends_with_a_file_its_worth_and_the_line_that_exports_it(
    trained: tuple[Path, str],
) -> None:
    final, said = trained
    assert "10 pictures to train on, 2 held out, 3 classes" in said
    assert "mIoU" in said
    assert f"paca export auto --checkpoint {final} --out models/mine/1/model.onnx" in said
    history = json.loads(torch.load(final.parent / "last.pt", weights_only=True)["history"])
    assert [line["phase"] for line in history] == ["head", "head", "all", "all"]
    worth = json.loads((final.parent / "evaluation.json").read_text())["held_out"]
    assert worth["interval"][0] <= worth["miou"] <= worth["interval"][1]
    assert len(list((final.parent / "calibration").glob("*.png"))) == 2


def test_the_file_exports_and_scores_the_same_in_torch_and_as_it_is_served(
    trained: tuple[Path, str], folder: Path, tmp_path: Path
) -> None:
    final, _ = trained
    report = export(Request("auto", checkpoint=final, out=tmp_path / "mine" / "1" / "model.onnx"))
    assert report.manifest.labels == CLASSES
    assert "held_out" in report.manifest.accuracy
    assert is_segmenter(report.path)
    assert is_segmenter(final)
    served, torch_ = evaluate(report.path, folder), evaluate(final, folder)
    assert served.scores.miou == pytest.approx(torch_.scores.miou, abs=1e-3)
    command(report.path, folder, tmp_path / "scores", console=Console(file=io.StringIO()))
    assert json.loads((tmp_path / "scores" / "evaluation.json").read_text())["scores"]["pictures"] == 12


def test_a_run_that_was_cut_off_goes_on_and_ends_as_if_it_had_not_been(
    folder: Path, begun_from: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = Console(file=io.StringIO())
    whole = masks.run(folder, tmp_path / "whole", epochs=2, start_from=begun_from, console=quiet)
    save, saves = masks.MaskRun.save, []

    def cut(self: masks.MaskRun, path: Path) -> None:
        save(self, path)
        saves.append(self.phase)
        if len(saves) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(masks.MaskRun, "save", cut)
    with pytest.raises(KeyboardInterrupt):
        masks.run(folder, tmp_path / "cut", epochs=2, start_from=begun_from, console=quiet)
    monkeypatch.undo()
    resumed = masks.run(folder, tmp_path / "cut", epochs=2, start_from=begun_from, console=quiet)
    best = [torch.load(path.parent / "best.pt", weights_only=True)["ema"] for path in (whole, resumed)]
    for key, value in best[0].items():
        torch.testing.assert_close(best[1][key], value, msg=key)
    with pytest.raises(DataError, match="other settings"):
        masks.run(folder, tmp_path / "cut", epochs=3, start_from=begun_from, console=quiet)


def test_it_starts_from_a_classifier_too_whose_gate_and_head_are_left(tmp_path: Path) -> None:
    stages = (StageConfig(8, 1, 2, 5), StageConfig(12, 1, 3, 3), StageConfig(16, 1, 4))
    config = PaCaConfig("gated", stages, num_classes=4, image_size=64, pool="gated", stem="conv_norm")
    classifier = PaCaViT(config).eval()
    save_final(classifier, tmp_path / "c.safetensors", ("a", "b", "c", "d"), 1.0, {})
    model, _ = model_for(tmp_path / "c.safetensors", 3, 1)
    own = model.backbone.state_dict()
    for key, value in classifier.state_dict().items():
        if not key.startswith(("head.", "pool.")):
            torch.testing.assert_close(own[key], value.half().to(value.dtype))
    assert (model.config.num_classes, model.config.width, model.config.backbone.image_size) == (3, 64, 96)


def test_the_embedded_classifier_is_where_it_starts_by_default() -> None:
    model, source = model_for(None, 2, 1)
    assert source == "model.safetensors"
    assert model.config.backbone.image_size == 192
    assert model.config == config_for(dataclasses.replace(model.config.backbone, image_size=128), 2)


def test_a_file_that_is_no_checkpoint_is_said_in_one_line(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(DataError, match="not the weights of a PaCa-ViT"):
        model_for(tmp_path / "x.safetensors", 2, 1)


def test_crops_of_pictures_and_masks_show_the_same_places(folder: Path) -> None:
    recipe = MaskRecipe(crop=48, jitter=0.0, seed=5)
    run = start(tiny_segmenter(), recipe)
    material = Material.of(read_masks(folder), 64)
    x, target = augmented(material, torch.arange(8), recipe, run)
    config = run.model.config.backbone
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (config.mean, config.std))
    pixels = x * std + mean
    for k, colour in ((0, (0.1, 0.1, 0.1)), (1, (0.8, 0.5, 0.3)), (2, (0.3, 0.6, 0.3))):
        inside = (target == k)[:, None].expand_as(pixels)
        found = [float(pixels[:, c][inside[:, c]].mean()) for c in range(3)]
        assert found == pytest.approx(colour, abs=0.08)


def test_pixels_that_are_not_judged_teach_nothing() -> None:
    logits = torch.zeros(1, 2, 2, 2, requires_grad=True)
    target = torch.tensor([[[0, IGNORED], [IGNORED, 1]]])
    mask_loss(logits, target).backward()
    assert np.count_nonzero(logits.grad.abs().sum(1).numpy()) == 2
    assert mask_loss(logits, torch.full((1, 2, 2), IGNORED)).item() == 0
