"""A model with novelty statistics says of every picture how novel it is, through every door."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from service.novelty import NOVELTY_KEY, Statistics
from service.settings import Settings
from tests.service.api.conftest import opened


def statistics(offset: float) -> Statistics:
    """By which every picture has the score 0.99 (offset 0) or 0 (offset -1e6)."""
    return Statistics(
        scale=np.array([[0, 0], [1, 1]], np.float32),
        sorted_scores=np.linspace(-1e5, -9e4, 99).astype(np.float32),
        probe=np.append(np.zeros(16), offset).astype(np.float32),
        measured={"flagged_foreign": 0.4},
    )


@pytest.fixture(scope="module", params=[0.0, -1e6], ids=["novel", "known"])
def app(request, tiny_repository: Path, tmp_path_factory):
    """(whether every picture is novel, a client of an app whose model says so)."""
    repository = tmp_path_factory.mktemp("repository")
    shutil.copytree(tiny_repository / "tiny", repository / "tiny")
    path = repository / "tiny" / "1" / "model.onnx"
    model = onnx.load(path)
    onnx.helper.set_model_props(
        model,
        {p.key: p.value for p in model.metadata_props} | {NOVELTY_KEY: statistics(request.param).to_text()},
    )
    onnx.save(model, path)
    with opened(Settings(models=repository)) as client:
        yield request.param == 0, client


@pytest.mark.parametrize("path", ["/classify", "/explain?method=cam", "/explain?method=occlusion"])
def test_every_answer_carries_it_and_predictions_stay(app, path, jpeg, client):
    novel, with_statistics = app
    answer = with_statistics.post(path, content=jpeg).json()
    assert answer["novelty"] == {"score": 0.99 if novel else 0.0, "threshold": 0.95, "is_novel": novel}
    assert any("none of the model's 4 classes" in warning for warning in answer["warnings"]) == novel
    plain = client.post(path, content=jpeg).json()
    assert "novelty" not in plain
    assert answer["predictions"] == plain["predictions"]


def test_what_it_is_worth_stands_with_the_model(app):
    found = app[1].get("/models/tiny").json()["novelty"]
    assert found == {
        "method": "energy and a linear probe",
        "references": 99,
        "measured": {"flagged_foreign": 0.4},
    }


@pytest.mark.parametrize("name", ["tiny", "tiny-image"])
def test_the_inference_protocol_has_it_as_an_output(app, name, jpeg):
    novel, client = app
    described = {o["name"]: o for o in client.get(f"/v2/models/{name}").json()["outputs"]}
    assert described["novelty"] == {"name": "novelty", "datatype": "FP32", "shape": [-1]}
    if name == "tiny":
        image = {
            "datatype": "UINT8",
            "shape": [2, 32, 32, 3],
            "data": np.zeros(2 * 32 * 32 * 3, int).tolist(),
        }
    else:
        import base64

        image = {"datatype": "BYTES", "shape": [2], "data": [base64.b64encode(jpeg).decode()] * 2}
    body = {"inputs": [{"name": "image"} | image], "outputs": [{"name": "novelty"}]}
    [output] = client.post(f"/v2/models/{name}/infer", json=body).json()["outputs"]
    assert output["shape"] == [2]
    assert output["data"] == pytest.approx([0.99 if novel else 0.0] * 2)
    everything = client.post(f"/v2/models/{name}/infer", json={"inputs": body["inputs"]}).json()
    assert {"logits", "novelty"} <= {output["name"] for output in everything["outputs"]}


def test_metrics_count_what_was_novel(app, jpeg):
    novel, client = app
    client.post("/classify", content=jpeg)
    lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
    assert (float(lines['paca_novel_total{model="tiny"}']) > 0) == novel
    assert float(lines['paca_novelty_count{model="tiny"}']) > 0


def test_the_operator_sets_the_threshold(tiny_repository, app, jpeg):
    _, client = app
    repository = client.app.state.paca.settings.models
    with opened(Settings(models=repository, novelty_threshold=1.0)) as strict:
        answer = strict.post("/classify", content=jpeg).json()
    assert (answer["novelty"]["threshold"], answer["novelty"]["is_novel"]) == (1.0, False)
    assert json.dumps(answer["warnings"]) == "[]"
