"""Scoring what is served: an exported file through the server's engine, and a checkpoint in torch."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from export.checkpoints import load
from export.paca import PaCaViT
from export.training.checkpoint import save_final
from export.training.data import DataError
from export.training.evaluate import command, evaluate


@pytest.fixture
def trained(tiny: PaCaViT, tmp_path: Path) -> Path:
    path = tmp_path / "m.safetensors"
    save_final(tiny, path, ("blue", "green", "red"), 2.0, {})
    return path


def test_an_exported_file_is_scored_through_the_servers_engine(
    tiny_repository: Path, class_folder: Callable[[int], Path]
) -> None:
    found = evaluate(tiny_repository / "tiny" / "1" / "model.onnx", class_folder(15), "cpu")
    assert found.runs_on == "onnxruntime cpu"
    assert found.scores.pictures == 45
    assert sum(map(sum, found.scores.confusion)) == 45
    assert [c.support for c in found.scores.classes] == [15, 15, 15, 0]  # red, green, blue, grey
    assert found.images_per_second > 0
    assert found.clusters == {}


def test_a_checkpoint_is_scored_with_its_temperature_and_its_clusters(
    trained: Path, class_folder: Callable[[int], Path]
) -> None:
    found = evaluate(trained, class_folder(4), "cpu")
    assert found.runs_on == "torch cpu"
    assert found.scores.temperature == 2.0
    assert found.clusters["stages"][0]["clusters"] == 5
    assert 0 <= found.clusters["uniform_assignment_accuracy"] <= 1


def test_a_checkpoint_and_its_export_score_alike(
    trained: Path, class_folder: Callable[[int], Path], tmp_path: Path
) -> None:
    from export.pipeline import Source, export_model

    loaded = load(trained)
    source = Source(loaded.model, "m", loaded.labels or (), loaded.temperature)
    export_model(
        source, tmp_path / "m.onnx"
    )  # with gradients: three classes are a size that tracing must not confuse with the batch
    here, there = (evaluate(path, class_folder(10), "cpu").scores for path in (trained, tmp_path / "m.onnx"))
    assert here.confusion == there.confusion
    assert here.nll == pytest.approx(there.nll, abs=1e-4)
    assert here.ece == pytest.approx(there.ece, abs=1e-3)


def test_the_command_prints_tables_and_writes_json_and_picture(
    trained: Path, class_folder: Callable[[int], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = class_folder(2)
    (folder / "red" / "zz.jpg").write_bytes(b"no picture")
    command(trained, folder, tmp_path / "out")
    text = capsys.readouterr().out
    assert "m.safetensors on pictures" in text
    assert "skipped: red/zz.jpg" in text
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert written["scores"]["pictures"] == 6
    assert (tmp_path / "out" / "confusion.png").is_file()


def test_the_command_prints_one_json_object_for_machines(
    trained: Path, class_folder: Callable[[int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command(trained, class_folder(2), as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert np.array(found["scores"]["confusion"]).sum() == 6
    assert {c["label"] for c in found["scores"]["classes"]} == {"blue", "green", "red"}


def test_data_of_other_classes_is_refused(tiny_checkpoint: Path, class_folder: Callable[[int], Path]) -> None:
    with pytest.raises(
        DataError, match="has the class 'blue', which the model does not know; it knows a, b, c"
    ):
        evaluate(tiny_checkpoint, class_folder(1), "cpu")


def test_a_checkpoint_that_does_not_name_its_classes_is_refused(
    tiny: PaCaViT, class_folder: Callable[[int], Path], tmp_path: Path
) -> None:
    torch.save(tiny.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(DataError, match=r"bare\.pth does not name its classes"):
        evaluate(tmp_path / "bare.pth", class_folder(1), "cpu")
    with pytest.raises(DataError, match="cannot read"):
        evaluate(tmp_path / "absent.pth", class_folder(1), "cpu")
