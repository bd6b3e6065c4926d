"""Novelty comes into a file by pictures that the user names, as this very file answers them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from export.errors import ExportError
from export.novelty import MAX_BYTES
from export.paca import PaCaConfig, PaCaViT, StageConfig
from export.pipeline import Format, Source, export_model
from export.reference import answers, read_reference
from service.cli import inspect
from service.engine import Device, Engine
from service.novelty import NOVELTY_KEY
from service.predictor import Predictor
from service.repository import embedded, find

CPU = Device("cpu")
COLOURS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (200, 50, 40)}


def photos(root: Path, each: int, colours: dict[str, tuple[int, int, int]] = COLOURS) -> Path:
    """A folder with one sub-folder a colour, of noisy pictures."""
    rng = np.random.default_rng(len(colours))
    for name, colour in colours.items():
        (root / name).mkdir(parents=True)
        for i in range(each):
            noisy = np.clip(np.array(colour) + rng.normal(0, 40, (40, 36, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(root / name / f"{i:03d}.png")
    return root


def inspected(model: Path) -> dict[str, Any] | None:
    """What `paca inspect` says of novelty."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        inspect(model, as_json=True)
    novelty: dict[str, Any] | None = json.loads(out.getvalue())["novelty"]
    return novelty


@pytest.fixture
def source() -> Source:
    torch.manual_seed(1)
    stages = (StageConfig(6, 1, 2, 3), StageConfig(10, 1, 5))
    config = PaCaConfig("toy", stages, num_classes=3, image_size=32, patch_size=2, resize="stretch", crop=1.0)
    model = PaCaViT(config).eval()
    torch.nn.init.normal_(model.head.weight, std=2.0)
    return Source(model, "toy", tuple(COLOURS))


def test_each_file_stores_its_own_scores_and_the_card_says_what_they_are_worth(
    source: Source, tmp_path: Path
) -> None:
    known = photos(tmp_path / "known", 90)
    greys = {f"grey {level}": (level,) * 3 for level in range(20, 240, 20)}
    foreign = photos(tmp_path / "foreign", 12, greys)
    engines, reports = {}, {}
    for precision, name in (("fp32", "model.onnx"), ("fp16", "model.fp16.onnx")):
        out = tmp_path / "toy" / "1" / name
        format = Format(precision=precision, reference=known, foreign=foreign, with_explain=False)
        reports[precision] = export_model(source, out, format)
        engines[precision] = Engine(out, CPU)
    how = engines["fp32"].manifest.preprocessing
    assert inspected(tmp_path / "toy" / "1" / "model.onnx") == reports["fp32"].to_dict()["novelty"]
    reference = read_reference(known, foreign, how, tmp_path / "absent")
    assert len(reference.held_out) == 54
    for engine in engines.values():
        assert engine.novelty is not None
        own = np.sort(engine.novelty.raw(*answers(engine, reference.held_out)))
        np.testing.assert_allclose(engine.novelty.sorted_scores, own, atol=1e-5)
    full, half = (e.novelty.sorted_scores for e in engines.values() if e.novelty)
    assert not np.array_equal(full, half)
    facts = reports["fp32"].to_dict()["novelty"]
    assert facts["references"] == 54
    assert set(facts["measured"]) == {
        "flagged_foreign",
        "auroc_foreign",
        "foreign_pictures",
        "flagged_drawings",
    }
    card = (tmp_path / "toy" / "1" / "README.md").read_text()
    caught = f"{facts['measured']['flagged_foreign']:.4g}"
    assert f"| model.onnx | flagged foreign | {caught} |" in card
    assert "| model.fp16.onnx | held-out pictures | 54 |" in card


def test_a_held_out_picture_is_scored_by_the_server_as_by_the_exporter(
    source: Source, tmp_path: Path
) -> None:
    """The same reader and the same formula: the held-out pictures get every rank there is."""
    known = tmp_path / "data"
    photos(known / "train", 30)
    photos(known / "val", 20)
    export_model(source, tmp_path / "model.onnx", Format(reference=known, with_explain=False))
    files = sorted((known / "val").glob("*/*.png"))
    predictor = Predictor.open(tmp_path / "model.onnx")

    async def scores() -> list[float]:
        found = [await predictor.classify(file.read_bytes()) for file in files]
        await predictor.close()
        return [answer.novelty.score for answer in found if answer.novelty]

    ranks = np.sort(asyncio.run(scores()))
    np.testing.assert_allclose(ranks, np.arange(60) / 61, atol=2 / 61)


def test_too_few_held_out_pictures_give_none_and_that_is_said(source: Source, tmp_path: Path) -> None:
    report = export_model(
        source, tmp_path / "model.onnx", Format(reference=photos(tmp_path / "known", 16), with_explain=False)
    )
    assert "no novelty: 9 held-out reference pictures, at least 50 are needed" in report.notes
    assert report.to_dict()["novelty"] is None
    assert Engine(tmp_path / "model.onnx", CPU).novelty is None


def test_the_split_of_the_training_is_kept(source: Source, tmp_path: Path) -> None:
    """What training saw must not be held out now."""
    known = photos(tmp_path / "known", 30)
    held_out = [f"{colour}/{i:03d}.png" for colour in COLOURS for i in range(20)]
    (tmp_path / "split.json").write_text(json.dumps({"held_out": held_out}))
    report = export_model(
        dataclasses.replace(source, run=tmp_path),
        tmp_path / "model.onnx",
        Format(reference=known, with_explain=False),
    )
    assert report.to_dict()["novelty"]["references"] == 60


def test_a_pack_holds_out_its_last_tenth(source: Source, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pack: dict[str, Any] = {
        "image": rng.integers(0, 256, (600, 32, 32, 3), np.uint8),
        "label": np.zeros(600, int),
    }
    np.savez(tmp_path / "known.npz", **pack, classes=np.array(["all"]))
    reference = read_reference(tmp_path / "known.npz", None, 32, tmp_path / "split.json")
    assert np.array_equal(reference.held_out, pack["image"][540:])
    assert reference.known is not None
    assert np.array_equal(reference.known, pack["image"][:540])


@pytest.mark.parametrize(
    ("format", "reason"),
    [
        (Format(foreign=Path("photos")), "--foreign needs --reference"),
        (Format(reference=Path("nowhere")), "cannot use the reference pictures: nowhere is not a folder"),
    ],
)
def test_what_cannot_be_used_is_said_before_anything_is_traced(
    source: Source, tmp_path: Path, format: Format, reason: str
) -> None:
    with pytest.raises(ExportError, match=reason):
        export_model(source, tmp_path / "model.onnx", format)
    assert list(tmp_path.iterdir()) == []


def test_a_file_exported_again_without_pictures_loses_its_statistics(source: Source, tmp_path: Path) -> None:
    export_model(
        source, tmp_path / "model.onnx", Format(reference=photos(tmp_path / "known", 90), with_explain=False)
    )
    shutil.rmtree(tmp_path / "known")
    report = export_model(source, tmp_path / "model.onnx", Format(with_explain=False))
    assert report.novelty is None
    assert NOVELTY_KEY.encode() not in (tmp_path / "model.onnx").read_bytes()


def test_every_file_of_the_embedded_model_has_scores_of_its_own() -> None:
    folder = find(embedded(), "imagenette").model.parent
    engines = {path.name: Engine(path, CPU) for path in folder.glob("model*.onnx")}
    assert {"model.onnx", "model.int8.onnx"} <= engines.keys()
    assert len({engine.manifest.weights_id for engine in engines.values()}) == 1
    scores = [engine.novelty.sorted_scores for engine in engines.values() if engine.novelty]
    assert [len(s) for s in scores] == [909] * len(engines)
    assert len({s.tobytes() for s in scores}) == len(engines)
    for engine in engines.values():
        assert engine.novelty is not None
        assert len(engine.novelty.to_text()) <= MAX_BYTES
        assert engine.novelty.measured["flagged_foreign"] >= 0.45
