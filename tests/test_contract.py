"""The two halves meet only here: a network is exported, served over a real socket, and asked; every promise
of the two endpoints is checked once."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.serving import served


@pytest.fixture(scope="module")
def server(tiny_repository: Path) -> Iterator[httpx.Client]:
    """A client of `paca serve` with the tiny model."""
    with served(tiny_repository) as serving, httpx.Client(base_url=serving.url, timeout=30) as client:
        yield client


def test_the_server_is_ready_only_after_its_self_test(server: httpx.Client) -> None:
    assert server.get("/healthz").status_code == 200
    assert server.get("/readyz").status_code == 200
    model = server.get("/models/tiny").json()
    assert model["labels"] == ["red", "green", "blue", "grey"]


def test_classify_answers_the_same_for_every_request_form(server: httpx.Client, jpeg: bytes) -> None:
    forms = [
        server.post("/classify", content=jpeg, headers={"content-type": "image/jpeg"}),
        server.post("/classify", content=jpeg, headers={"content-type": "application/x-www-form-urlencoded"}),
        server.post("/classify", files={"file": ("cat.jpg", jpeg)}),
        server.post("/classify", json={"image": base64.b64encode(jpeg).decode()}),
        server.post("/classify", json={"image": "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()}),
    ]
    assert [r.status_code for r in forms] == [200] * len(forms)
    first = forms[0].json()
    assert first["image"] == {"width": 451, "height": 300, "format": "JPEG"}
    assert len(first["predictions"]) == 4
    assert sum(p["score"] for p in first["predictions"]) == pytest.approx(1, abs=1e-6)
    assert all(r.json()["predictions"] == first["predictions"] for r in forms)


def test_explain_gives_the_scores_of_classify_and_an_exact_account(server: httpx.Client, jpeg: bytes) -> None:
    scores = server.post("/classify", content=jpeg).json()["predictions"]
    answer = server.post("/explain?method=cam&top_clusters=3&arrays=f16", content=jpeg).json()
    assert answer["predictions"] == scores
    (explanation,) = answer["explanations"]
    account = explanation["completeness"]
    assert account["sum_contributions"] + account["bias"] == pytest.approx(account["logit"], abs=1e-4)
    assert account["logit"] == pytest.approx(explanation["target"]["logit"])
    assert explanation["heatmap"]["grid"] == [4, 4]
    assert np.frombuffer(
        base64.b64decode(explanation["heatmap"]["array"]), np.float16
    ).sum() == pytest.approx(account["sum_contributions"], abs=1e-2)
    assert len(explanation["clusters"]) == 3
    assert explanation["method"]["class_specific"] is True


def test_overlays_are_pictures_of_the_size_they_say(server: httpx.Client, jpeg: bytes) -> None:
    answer = server.post(
        "/explain?render=overlay,heatmap,mask,masked,segmentation,clusters&format=png", content=jpeg
    ).json()
    (explanation,) = answer["explanations"]
    pictures = [*explanation["images"].values(), *(c["overlay"] for c in explanation["clusters"])]
    assert set(explanation["images"]) == {"overlay", "heatmap", "mask", "masked", "segmentation"}
    for picture in pictures:
        with Image.open(io.BytesIO(base64.b64decode(picture["data"]))) as image:
            assert image.size == (picture["width"], picture["height"])
    assert explanation["images"]["overlay"]["width"] == 451
    assert all(max(c["overlay"]["width"], c["overlay"]["height"]) <= 256 for c in explanation["clusters"])


def test_the_default_explanation_is_focus_where_the_gradient_graph_is_there(
    server: httpx.Client, jpeg: bytes
) -> None:
    method = server.post("/explain", content=jpeg).json()["explanations"][0]["method"]
    assert (method["name"], method["gradients"]) == ("focus", 1)


def test_without_the_gradient_graph_the_default_is_cam(repository: Path, jpeg: bytes) -> None:
    import asyncio

    from service.predictor import Predictor

    (repository / "tiny" / "1" / "explain.onnx").unlink()

    async def ask() -> str:
        predictor = Predictor.open(repository / "tiny" / "1" / "model.onnx")
        answer = await predictor.explain(jpeg)
        await predictor.close()
        return answer.explanations[0].method.name

    assert asyncio.run(ask()) == "cam"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"this is no picture, but a text", 415),
        (b"GIF89a" + bytes(100), 415),
    ],
)
def test_a_body_that_is_no_picture_gets_a_clear_4xx(server: httpx.Client, body: bytes, status: int) -> None:
    answer = server.post("/classify", content=body, headers={"content-type": "application/octet-stream"})
    assert answer.status_code == status
    assert answer.headers["content-type"].startswith("application/problem+json")
    problem = answer.json()
    assert problem["status"] == status
    assert problem["detail"]
    assert problem["request_id"]


def test_a_truncated_jpeg_is_refused(server: httpx.Client, jpeg: bytes) -> None:
    assert server.post("/classify", content=jpeg[: len(jpeg) // 2]).status_code == 422


def test_a_png_that_claims_to_be_huge_is_refused_from_its_header(server: httpx.Client) -> None:
    header = (
        b"\x89PNG\r\n\x1a\n"
        + (13).to_bytes(4, "big")
        + b"IHDR"
        + (50_000).to_bytes(4, "big") * 2
        + bytes([8, 2, 0, 0, 0])
    )
    import zlib

    png = header + zlib.crc32(header[12:]).to_bytes(4, "big") + bytes(64)
    answer = server.post("/classify", content=png)
    assert answer.status_code == 413
    assert "50000" in answer.text.replace(",", "")
