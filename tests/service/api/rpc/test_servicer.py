"""Acceptance of the Open Inference Protocol over gRPC: NVIDIA's own client, sync and async, gets what it gets
over HTTP, bit for bit."""

from __future__ import annotations

import asyncio
import queue

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from tests.service.api.rpc.conftest import grpc, http_triton, infer_message, picture, triton

pb = triton.service_pb2


@pytest.fixture
def client(door):
    with triton.InferenceServerClient(door.address) as ready:
        yield ready


@pytest.fixture
def http_client(door):
    with http_triton.InferenceServerClient(door.serving.url.removeprefix("http://")) as ready:
        yield ready


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)


def tensor(client_module, values: np.ndarray):
    given = client_module.InferInput("image", list(values.shape), "UINT8")
    given.set_data_from_numpy(values)
    return given


def encoded(client_module, jpeg: bytes):
    given = client_module.InferInput("image", [1], "BYTES")
    given.set_data_from_numpy(np.array([jpeg], dtype=np.object_))
    return given


def test_it_finds_the_server_and_the_models(client, http_client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny-image", "1")
    assert not client.is_model_ready("other")
    assert not client.is_model_ready("tiny", "7")
    assert client.get_server_metadata(as_json=True) == http_client.get_server_metadata()


@pytest.mark.parametrize("name", ["tiny", "tiny-image"])
def test_a_model_describes_itself_as_over_http(client, http_client, name):
    told, expected = client.get_model_metadata(name), http_client.get_model_metadata(name)
    assert (told.name, list(told.versions), told.platform) == (
        expected["name"],
        expected["versions"],
        expected["platform"],
    )
    for side in ("inputs", "outputs"):
        assert [
            {"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in getattr(told, side)
        ] == expected[side]


@pytest.mark.parametrize("name", ["tiny", "tiny-image"])
def test_all_outputs_equal_those_of_http_bit_for_bit(client, http_client, jpeg, pixels, name):
    def asked(module):
        return encoded(module, jpeg) if name == "tiny-image" else tensor(module, pixels[:1])

    told = client.infer(name, [asked(triton)], request_id="7", model_version="1")
    expected = http_client.infer(name, [asked(http_triton)])
    response = told.get_response()
    assert (response.id, response.model_name, response.model_version) == ("7", name, "1")
    names = [output["name"] for output in expected.get_response()["outputs"]]
    assert [output.name for output in response.outputs] == names
    assert {"logits", "tokens", "assignment_1", "assignment_2"} <= set(names)
    for output in names:
        assert told.as_numpy(output).tobytes() == expected.as_numpy(output).tobytes()
        assert told.as_numpy(output).shape == expected.as_numpy(output).shape


def test_only_the_outputs_named_come_in_their_order(client, pixels):
    wanted = [triton.InferRequestedOutput(name) for name in ("assignment_1", "logits")]
    told = client.infer("tiny", [tensor(triton, pixels)], outputs=wanted)
    assert [output.name for output in told.get_response().outputs] == ["assignment_1", "logits"]
    assert told.as_numpy("assignment_1").shape[:2] == (2, 5)


def test_a_classification_names_the_best_classes_as_over_http(client, http_client, pixels):
    told = client.infer(
        "tiny", [tensor(triton, pixels)], outputs=[triton.InferRequestedOutput("logits", class_count=2)]
    )
    expected = http_client.infer(
        "tiny",
        [tensor(http_triton, pixels)],
        outputs=[http_triton.InferRequestedOutput("logits", class_count=2)],
    )
    assert told.as_numpy("logits").shape == (2, 2)
    assert told.as_numpy("logits").tolist() == expected.as_numpy("logits").tolist()


def test_it_asks_for_several_at_once(client, jpeg):
    answers: queue.Queue = queue.Queue()
    expected = client.infer("tiny-image", [picture(jpeg)]).as_numpy("logits")
    for _ in range(8):
        client.async_infer("tiny-image", [picture(jpeg)], lambda result, error: answers.put((result, error)))
    for _ in range(8):
        result, error = answers.get(timeout=60)
        assert error is None
        np.testing.assert_allclose(result.as_numpy("logits"), expected, atol=1e-4)


def test_its_asyncio_client_works_too(door, client, pixels):
    import tritonclient.grpc.aio as aio

    async def ask():
        async with aio.InferenceServerClient(door.address) as ready:
            assert await ready.is_server_ready()
            assert (await ready.get_model_metadata("tiny")).name == "tiny"
            return await ready.infer("tiny", [tensor(triton, pixels[:1])])

    expected = client.infer("tiny", [tensor(triton, pixels[:1])])
    told = asyncio.run(ask())
    for output in ("logits", "tokens"):
        assert told.as_numpy(output).tobytes() == expected.as_numpy(output).tobytes()


@pytest.mark.parametrize(
    ("code", "name", "wrong"),
    [
        ("NOT_FOUND", "other", lambda m, j: tensor(m, np.zeros((1, 32, 32, 3), np.uint8))),
        ("INVALID_ARGUMENT", "tiny", lambda m, j: tensor(m, np.zeros((1, 31, 32, 3), np.uint8))),
        ("INVALID_ARGUMENT", "tiny", lambda m, j: tensor(m, np.zeros((129, 32, 32, 3), np.uint8))),
        ("INVALID_ARGUMENT", "tiny", lambda m, j: tensor(m, np.zeros((0, 32, 32, 3), np.uint8))),
        ("INVALID_ARGUMENT", "tiny", encoded),
        ("INVALID_ARGUMENT", "tiny-image", lambda m, j: encoded(m, j[:3000])),
        ("INVALID_ARGUMENT", "tiny-image", lambda m, j: encoded(m, b"no picture")),
    ],
)
def test_a_refusal_says_what_it_says_over_http(client, http_client, jpeg, code, name, wrong):
    with pytest.raises(InferenceServerException) as told:
        client.infer(name, [wrong(triton, jpeg)])
    with pytest.raises(InferenceServerException) as expected:
        http_client.infer(name, [wrong(http_triton, jpeg)])
    assert told.value.status() == f"StatusCode.{code}"
    assert told.value.message() == expected.value.message()


def test_unknown_outputs_and_classifications_that_cannot_be_are_refused(client, pixels):
    for output in (
        triton.InferRequestedOutput("nothing"),
        triton.InferRequestedOutput("tokens", class_count=2),
    ):
        with pytest.raises(InferenceServerException, match="INVALID_ARGUMENT"):
            client.infer("tiny", [tensor(triton, pixels)], outputs=[output])


def test_single_values_are_answered_with_single_values(door, client, pixels):
    """What a client without numpy sends, `grpcurl` for one."""
    request = pb.ModelInferRequest(
        model_name="tiny",
        id="42",
        inputs=[
            {
                "name": "image",
                "datatype": "UINT8",
                "shape": list(pixels.shape),
                "contents": {"uint_contents": pixels.ravel().tolist()},
            }
        ],
    )
    with grpc.insecure_channel(door.address) as channel:
        response = triton.service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    expected = client.infer("tiny", [tensor(triton, pixels)])
    assert response.id == "42"
    assert not response.raw_output_contents
    for output in response.outputs:
        values = np.array(output.contents.fp32_contents, np.float32).reshape(list(output.shape))
        assert values.tobytes() == expected.as_numpy(output.name).tobytes()


def test_encoded_photos_may_be_single_values_too(door, jpeg):
    request = infer_message(jpeg)
    del request.raw_input_contents[:]
    request.inputs[0].contents.bytes_contents.append(jpeg)
    request.outputs[0].parameters["classification"].int64_param = 1
    with grpc.insecure_channel(door.address) as channel:
        stub = triton.service_pb2_grpc.GRPCInferenceServiceStub(channel)
        (best,) = stub.ModelInfer(request).outputs[0].contents.bytes_contents
        logits = stub.ModelInfer(infer_message(jpeg)).raw_output_contents[0]
    assert int(best.split(b":")[1]) == np.frombuffer(logits, "<f4").argmax()
