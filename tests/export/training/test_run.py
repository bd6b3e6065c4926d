"""A user's own pictures, from the folder to the line that exports the model; also with the power cut in
between."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from export.checkpoints import load
from export.pipeline import Format, Request
from export.pipeline import run as export
from export.training.data import DataError
from export.training.run import run
from service.engine import Device, Engine

COLOURS = ("blue", "green", "red")  # of class_folder


def train(data: Path, out: Path, start_from: Path | None, **options: Any) -> Path:
    return run("folder", data, out, start_from=start_from, device="cpu", **options)


def test_a_folder_becomes_a_model_and_the_line_that_exports_it(
    class_folder: Callable[[int], Path],
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, out = class_folder(20), tmp_path / "run"
    (folder / "red" / "broken.jpg").write_bytes(b"nothing")
    final = train(folder, out, tiny_checkpoint, epochs=3)
    text = capsys.readouterr().out
    assert "48 pictures to train on, 12 held out, 3 classes" in text
    assert "skipped, cannot be read: red/broken.jpg" in text
    assert f"paca export auto --checkpoint {final} --out models/mine/1/model.onnx" in text
    loaded = load(final)
    assert loaded.labels == ("blue", "green", "red")
    assert loaded.model.config.image_size == 16
    assert loaded.temperature > 0
    with safe_open(final, "pt") as file:
        info = json.loads(file.metadata()["paca.training"])
    assert (info["recipe"], info["epochs"], info["seed"]) == ("folder", 3, 1)
    assert set(info["metrics"]) == {"held_out"}
    assert sorted(p.name for p in (out / "held_out").iterdir()) == ["blue", "green", "red"]
    assert len(list((out / "held_out").glob("*/*.png"))) == 12
    assert loaded.novelty is None
    assert "that takes 50 held-out pictures, there are 12" in text
    assert {"split.json", "log.jsonl", "evaluation.json", "confusion.png"} <= {p.name for p in out.iterdir()}


def test_novelty_is_fitted_in_training_and_scored_by_each_exported_file(
    class_folder: Callable[[int], Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    final = train(class_folder(100), tmp_path / "run", tiny_checkpoint, epochs=2)
    fitted = load(final).novelty
    assert fitted is not None
    assert set(fitted.measured) == {"flagged_drawings"}
    scores = {}
    for precision in ("fp32", "fp16"):
        out = tmp_path / f"model.{precision}.onnx"
        request = Request("auto", checkpoint=final, out=out, format=Format(precision=precision))
        report = export(request)
        assert any("60 held-out pictures (the pictures in held_out/)" in note for note in report.notes)
        served = Engine(out, Device("cpu")).novelty
        assert served is not None
        assert served.axes is not None
        assert fitted.axes is not None
        assert np.array_equal(served.axes, fitted.axes)
        scores[precision] = served.sorted_scores
    np.testing.assert_allclose(scores["fp32"], fitted.sorted_scores, atol=1e-3)
    assert not np.array_equal(scores["fp32"], scores["fp16"])
    shutil.rmtree(tmp_path / "run" / "held_out")
    report = export(Request("auto", checkpoint=final, out=tmp_path / "moved.onnx"))
    assert report.novelty is None
    assert "no novelty: the training's held_out/ is not beside the checkpoint" in " ".join(report.notes)


def test_a_finished_run_only_finalises_again(
    class_folder: Callable[[int], Path],
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, out = class_folder(10), tmp_path / "run"
    first, again = (load(train(folder, out, tiny_checkpoint, epochs=2)) for _ in range(2))
    assert first.temperature == again.temperature
    assert all(torch.equal(t, again.model.state_dict()[name]) for name, t in first.model.state_dict().items())
    assert "going on after epoch 2" in capsys.readouterr().out


def test_another_data_set_in_the_folder_of_a_run_is_refused(
    class_folder: Callable[[int], Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder, out = class_folder(10), tmp_path / "run"
    train(folder, out, tiny_checkpoint, epochs=1)
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    (folder / "red").rename(folder / "amber")
    with pytest.raises(DataError, match=r"other classes \(it has red; this data has amber\)"):
        train(folder, out, tiny_checkpoint, epochs=1)
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


def test_a_test_part_is_scored_at_the_end_and_a_guess_is_called_one(
    class_folder: Callable[[int], Path],
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The pictures of the test part are in the wrong class folders, so nothing can be right but by chance."""
    folder = class_folder(12)
    for part, shift in (("Training", 0), ("valid", 0), ("TEST", 1)):
        for i, name in enumerate(COLOURS):
            here = tmp_path / "data" / part / COLOURS[(i + shift) % 3]
            here.mkdir(parents=True)
            for file in sorted((folder / name).iterdir()):
                shutil.copy(file, here)
    train(tmp_path / "data", tmp_path / "run", tiny_checkpoint, epochs=6)
    text = capsys.readouterr().out
    assert "36 pictures to train on, 36 held out, 3 classes" in text
    assert "Training/ is trained on, valid/ is held out, TEST/ is scored once" in text
    assert "36 of the 36 held-out pictures are trained on too" in text
    assert "no better than a guess" in text
    assert "not worth serving; to try it all the same:" in text
    written = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert set(written) == {"training", "test", "accuracy_interval", "verdict"}
    assert written["test"]["pictures"] == 36


def test_class_names_of_any_language_survive_a_locale_that_is_not_utf_8(
    class_folder: Callable[[int], Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = class_folder(6)
    (folder / "red").rename(folder / "鯉 魚")
    (folder / "blue").rename(folder / "Äpfel [grün]")
    code = "import sys; sys.argv[0] = 'paca'; from service.cli import main; main()"
    places = ["-d", str(folder), "-o", str(tmp_path / "run"), "--from", str(tiny_checkpoint)]
    arguments = ["train", "folder", *places]
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--epochs", "1"],
        env={**os.environ, **ascii_only, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert b"[gr" in done.stdout  # no markup
    assert load(tmp_path / "run" / "model.safetensors").labels == ("green", "Äpfel [grün]", "鯉 魚")
    assert "Äpfel [grün]/" in (tmp_path / "run" / "split.json").read_text(encoding="utf-8")


def test_the_clustering_can_be_chosen(
    class_folder: Callable[[int], Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    final = train(class_folder(5), tmp_path / "run", tiny_checkpoint, epochs=1, clustering="kmeans")
    assert load(final).model.config.stages[0].clustering == "kmeans"


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("flowers", {}, "unknown recipe 'flowers'; choose imagenette, cifar10, folder"),
        ("folder", {"clustering": "k-means"}, "unknown clustering 'k-means'; choose conv, .*kmeans.*teacher"),
        ("folder", {"start_from": Path("/nowhere.pth")}, "nowhere.pth"),
        ("imagenette", {}, "imagenette_train_128.npz"),
        ("cifar10", {}, "cifar10_train_jpeg.npz"),
    ],
)
def test_wrong_wishes_are_answered_in_one_line(
    class_folder: Callable[[int], Path], tmp_path: Path, recipe: str, options: dict, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        run(recipe, class_folder(2), tmp_path / "run", device="cpu", **options)
    assert "\n" not in str(caught.value)


def epochs_logged(out: Path) -> int:
    log = out / "log.jsonl"
    return len(log.read_text().splitlines()) if log.is_file() else 0


def test_a_killed_training_loses_at_most_one_epoch_and_ends_as_if_never_killed(
    class_folder: Callable[[int], Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = class_folder(100)
    code = (
        "import sys; from pathlib import Path; from export.training.run import run; a = [Path(p) for p in "
        "sys.argv[1:]];"
    )
    code += "run('folder', a[0], a[1], start_from=a[2], epochs=6, device='cpu')"

    def launch(out: Path) -> subprocess.Popen:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
        return subprocess.Popen(
            [sys.executable, "-c", code, folder, out, tiny_checkpoint],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )

    whole = launch(tmp_path / "whole")
    killed = launch(tmp_path / "killed")
    deadline = time.monotonic() + 120
    while epochs_logged(tmp_path / "killed") < 2 and time.monotonic() < deadline and killed.poll() is None:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    done = epochs_logged(tmp_path / "killed")
    assert done >= 2
    said, _ = launch(tmp_path / "killed").communicate(timeout=120)
    whole.communicate(timeout=120)
    resumed_after = int(said.split("going on after epoch ")[1].split()[0])
    assert resumed_after >= done
    assert [
        json.loads(line)["epoch"] for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()
    ][-1] == 6
    one, two = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "killed"))
    assert all(torch.equal(t, two["ema"][name]) for name, t in one["ema"].items())
