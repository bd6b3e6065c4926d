"""An imported model is served as any other: its file's words decide what it can answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from export.finish import Format
from export.importing.run import Request, run
from service.engine import Device, Engine
from tests.serving import served

from .graphs import FIRST_ORDER, LINEAR, NO_HEAD, SIDE, Net, saved

NETS = {
    "linear": LINEAR["softmax at the end"],
    "curved": FIRST_ORDER["two Gemms and tanh"],
    "flat": NO_HEAD["flatten"][0],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imported")
    for name, build in NETS.items():
        run(Request(source=saved(build(Net()).model(), folder), out=folder / name / "1" / "model.onnx"))
    return folder


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[httpx.Client]:
    with (
        served(models, default_model="linear") as serving,
        httpx.Client(base_url=serving.url, timeout=60) as client,
    ):
        yield client


def explanation(server: httpx.Client, query: str, jpeg: bytes) -> tuple[dict, list[str]]:
    answer = server.post(f"/explain?{query}", content=jpeg)
    assert answer.status_code == 200, answer.text
    return answer.json()["explanations"][0], answer.json()["warnings"]


@pytest.mark.parametrize("name", NETS)
def test_it_classifies(server: httpx.Client, name: str, jpeg: bytes) -> None:
    predictions = server.post(f"/classify?model={name}", content=jpeg).json()["predictions"]
    assert len(predictions) == 5
    assert sum(p["score"] for p in predictions) == pytest.approx(1, abs=1e-6)


def test_a_linear_head_has_an_exact_account(server: httpx.Client, jpeg: bytes) -> None:
    found, warnings = explanation(server, "model=linear", jpeg)
    assert (found["method"]["name"], found["method"]["complete"]) == ("cam", True)
    assert abs(found["completeness"]["residual"]) <= 1e-4
    assert found["heatmap"]["scale"]["units"] == "logit"
    assert set(found["images"]) == {"overlay", "parts"}
    total = sum(part["share"] for part in found["parts"]) + found["target"]["bias"]
    assert total == pytest.approx(found["target"]["logit"], abs=1e-4)
    assert not any("first order" in text for text in warnings)


def test_a_head_of_first_order_claims_no_account(server: httpx.Client, jpeg: bytes) -> None:
    found, warnings = explanation(server, "model=curved", jpeg)
    method = found["method"]
    assert (method["name"], method["complete"], method["gradients"]) == ("cam", False, 1)
    assert "completeness" not in found
    assert found["target"].get("bias") is None
    assert found["heatmap"]["scale"]["units"] == "relative"
    assert found["parts"]
    assert any("first order" in text for text in warnings)


def test_a_model_without_tokens_is_explained_by_hiding_places(server: httpx.Client, jpeg: bytes) -> None:
    found, _ = explanation(server, "model=flat&check=true", jpeg)
    assert (found["method"]["name"], found["method"]["complete"]) == ("occlusion", False)
    assert "passed" in found["check"]
    refused = server.post("/explain?model=flat&method=cam", content=jpeg)
    assert refused.status_code == 422
    assert "choose one of: occlusion" in refused.json()["detail"]
    assert server.post("/explain?model=flat&render=parts", content=jpeg).status_code == 422


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("query", ["method=occlusion", "contrast=runner_up", "target=class_2"])
def test_every_question_is_answered(server: httpx.Client, name: str, query: str, jpeg: bytes) -> None:
    found, _ = explanation(server, f"model={name}&{query}", jpeg)
    assert found["images"]["overlay"]["data"]


def test_what_the_api_says_of_the_model(server: httpx.Client) -> None:
    assert server.get("/models/flat").status_code == 200
    report = server.post("/v2/models/flat/infer", json={"inputs": []})
    assert report.status_code == 400
    assert [o["name"] for o in server.get("/v2/models/linear").json()["outputs"]] == ["logits", "tokens"]


def test_a_file_in_8_bits_passes_the_gates_of_every_export(models: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(40):
        colours = rng.integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(colours).resize((SIDE, SIDE)).save(tmp_path / f"{number}.png")
    report = run(
        Request(
            source=saved(LINEAR["global pool, Gemm"](Net()).model(), tmp_path),
            format=Format(precision="int8", calibration=tmp_path),
            out=tmp_path / "toy" / "1" / "model.int8.onnx",
        )
    )
    assert report.manifest.precision == "int8"
    assert report.manifest.verification["agreement"] >= 0.99
    Engine(report.path, Device("cpu")).self_test()
