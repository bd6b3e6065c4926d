"""Acceptance of the Open Inference Protocol: NVIDIA's own client, sync and async, JSON and binary, pixels and
encoded photos."""

from __future__ import annotations

import asyncio
import base64

import numpy as np
import pytest

from service.predictor import Predictor

tritonclient = pytest.importorskip("tritonclient.http")


@pytest.fixture
def address(serving) -> str:
    return serving.url.removeprefix("http://")


@pytest.fixture
def expected(http, jpeg) -> np.ndarray:
    """Logits in class order, as /classify says."""
    return np.array(
        [
            p["logit"]
            for p in sorted(
                http.post("/classify", content=jpeg).json()["predictions"], key=lambda p: p["class_id"]
            )
        ]
    )


def encoded(jpeg: bytes, binary: bool):
    given = tritonclient.InferInput("image", [1], "BYTES")
    given.set_data_from_numpy(
        np.array([jpeg if binary else base64.b64encode(jpeg)], dtype=np.object_), binary_data=binary
    )
    return given


@pytest.fixture(scope="module")
def prepared(tiny_repository, jpeg) -> np.ndarray:
    """The photo as the graph takes it."""

    async def prepare() -> np.ndarray:
        predictor = Predictor.open(tiny_repository / "tiny" / "1" / "model.onnx")
        try:
            return (await predictor.prepare(jpeg))[None]
        finally:
            await predictor.close()

    return asyncio.run(prepare())


def pixels(prepared: np.ndarray, binary: bool):
    given = tritonclient.InferInput("image", list(prepared.shape), "UINT8")
    given.set_data_from_numpy(prepared, binary_data=binary)
    return given


def test_it_finds_the_server_and_the_models(address):
    with tritonclient.InferenceServerClient(address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("tiny")
        assert not client.is_model_ready("other")
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        assert client.get_model_metadata("tiny", "1")["inputs"][0]["shape"] == [-1, 32, 32, 3]


@pytest.mark.parametrize("name", ["tiny-image", "tiny"])
@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_it_gets_the_answer_of_classify(address, jpeg, prepared, expected, name, binary_in, binary_out):
    given = pixels(prepared, binary_in) if name == "tiny" else encoded(jpeg, binary_in)
    wanted = [
        tritonclient.InferRequestedOutput(output, binary_data=binary_out)
        for output in ("logits", "assignment_1")
    ]
    with tritonclient.InferenceServerClient(address) as client:
        answer = client.infer(name, [given], outputs=wanted, request_id="7")
    np.testing.assert_allclose(answer.as_numpy("logits")[0], expected, atol=1e-4)
    assert answer.as_numpy("assignment_1").shape[1] == 5
    assert answer.get_response()["id"] == "7"


def test_it_asks_for_several_at_once(address, jpeg, expected):
    with tritonclient.InferenceServerClient(address, concurrency=4) as client:
        asked = [client.async_infer("tiny-image", [encoded(jpeg, True)]) for _ in range(8)]
        for answer in asked:
            np.testing.assert_allclose(answer.get_result().as_numpy("logits")[0], expected, atol=1e-4)


def test_its_asyncio_client_works_too(address, jpeg, expected):
    import tritonclient.http.aio as aio

    async def ask():
        async with aio.InferenceServerClient(address) as client:
            assert await client.is_server_ready()
            return await client.infer(
                "tiny-image",
                [encoded(jpeg, True)],
                outputs=[aio.InferRequestedOutput("logits", class_count=2)],
            )

    best = asyncio.run(ask()).as_numpy("logits")[0]
    value, index, _ = best[0].decode().split(":")
    assert int(index) == int(expected.argmax())
    assert float(value) == pytest.approx(expected.max(), abs=1e-4)


def test_it_understands_the_refusals(address, jpeg, prepared):
    from tritonclient.utils import InferenceServerException

    with tritonclient.InferenceServerClient(address) as client:
        with pytest.raises(InferenceServerException, match="there is no model 'other'"):
            client.infer("other", [pixels(prepared, True)])
        with pytest.raises(InferenceServerException, match="truncated"):
            client.infer("tiny-image", [encoded(jpeg[:3000], True)])
