"""How true explanations are is measured on what is served, with the server's own maps and checks, and goes
into the model card."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from export.card import MEASURED
from export.training import explained, served
from export.training.data import DataError
from export.training.evaluate import command
from export.training.explained import RANDOM, measure
from service.engine import Device, Engine


@pytest.fixture
def data(repository: Path, class_folder: Callable[[int], Path]) -> Path:
    """Pictures sorted by what the untrained model calls them, so that it is right; boxes for two of them."""
    import shutil

    engine = Engine(repository / "tiny" / "1" / "model.onnx", Device("cpu"))
    source = class_folder(8)
    pictures = served.read(source, engine.manifest.labels, engine.manifest.preprocessing)
    answers = engine.run(pictures.images).logits.argmax(1)
    root = source.parent / "sorted"
    for name, answer in zip(pictures.names, answers, strict=True):
        place = root / engine.manifest.labels[answer]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / name, place / name.replace("/", "-"))
    named = sorted(path.relative_to(root).as_posix() for path in root.glob("*/*"))
    (root / "boxes.csv").write_text(f"{named[0]},0,0,1,1\n{named[1]},0,0,1,1\n")
    return root


def test_every_method_of_one_run_is_measured_beside_random_places(repository: Path, data: Path) -> None:
    found = measure(repository / "tiny" / "1" / "model.onnx", data, most=6, device="cpu")
    rows = {row.method: row for row in found.methods}
    assert set(rows) == {"focus", "cam", "fine", RANDOM}
    assert (found.pictures, found.right) == (6, 6)
    for row in rows.values():
        assert row.insertion is not None
        assert row.deletion is not None
        assert row.difference == pytest.approx(row.insertion - row.deletion, abs=2e-4)
        assert row.passed is not None
        assert 0 <= row.passed <= 1
    assert rows["cam"].pointing == 1.0  # the whole picture is the box
    assert rows["cam"].boxed == rows[RANDOM].boxed >= 1
    assert rows[RANDOM].random_head is None


def test_where_there_is_no_explain_onnx_the_exact_map_is_measured(repository: Path, data: Path) -> None:
    (repository / "tiny" / "1" / "explain.onnx").unlink()
    found = measure(repository / "tiny" / "1" / "model.onnx", data, most=2, device="cpu")
    assert [row.method for row in found.methods] == ["cam", RANDOM]


def test_a_map_that_is_the_truth_beats_one_that_is_its_opposite(
    repository: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What hiding single places does is known by trying; ranked by it, insertion less deletion is larger."""
    maps = explained.Subject.maps

    def by_trying(subject, picture, logits, arrays, weights):
        target = int(np.argmax(weights))
        hidden = np.repeat(picture[None], 64, 0)
        mean = round(255 * subject.engine.manifest.preprocessing.mean[0])
        for i in range(64):
            row, column = divmod(i, 8)
            hidden[i, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = mean
        drop = (logits[target] - subject.logits(hidden)[:, target]).reshape(8, 8).astype(np.float32)
        return {"truth": drop, "opposite": -drop, **maps(subject, picture, logits, arrays, weights)}

    monkeypatch.setattr(explained.Subject, "maps", by_trying)
    found = measure(repository / "tiny" / "1" / "model.onnx", data, most=8, device="cpu")
    rows = {row.method: row.difference or 0.0 for row in found.methods}
    assert rows["truth"] > rows["opposite"]


def test_the_command_prints_it_writes_it_down_and_puts_it_into_the_card(
    repository: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = repository / "tiny" / "1" / "model.onnx"
    for _ in range(2):
        command(model, data, tmp_path / "out", explain=3)
    text = capsys.readouterr().out
    assert "explanations of 3 rightly named of 3 pictures" in text
    assert "boxes.csv" not in text
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert {row["method"] for row in written["explanations"]["methods"]} == {"focus", "cam", "fine", RANDOM}
    card = (repository / "tiny" / "1" / "README.md").read_text()
    assert card.count(MEASURED) == 1
    assert "3 of 3 pictures of sorted, fp32." in card
    assert "| method | insertion | deletion | insertion less deletion | check passed |" in card


def test_a_checkpoint_must_be_exported_first(tiny_checkpoint: Path, data: Path) -> None:
    with pytest.raises(DataError, match=r"--explain measures what is served: export tiny\.safetensors with"):
        command(tiny_checkpoint, data, explain=3)


def test_boxes_of_other_pictures_are_refused(repository: Path, data: Path) -> None:
    (data / "boxes.csv").write_text("elsewhere.png,0,0,1,1\n")
    with pytest.raises(DataError, match="names none of the pictures"):
        measure(repository / "tiny" / "1" / "model.onnx", data, most=2, device="cpu")
