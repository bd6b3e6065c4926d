"""The Open Inference Protocol v2, endpoint by endpoint; `test_triton_client` asks with somebody else's
client."""

from __future__ import annotations

import base64
import json
import math

import numpy as np
import pytest


def infer(client, *inputs, path="/v2/models/tiny/infer", **members):
    return client.post(path, json={"inputs": list(inputs), **members})


def pixels(batch: int = 1, **members):
    values = np.arange(batch * 32 * 32 * 3).reshape(batch, 32, 32, 3) % 256
    return {
        "name": "image",
        "shape": list(values.shape),
        "datatype": "UINT8",
        "data": values.tolist(),
    } | members


def test_the_server_introduces_itself(client):
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data", "classification"]
    assert client.get("/v2/models").json() == {"models": ["tiny", "tiny-image"]}


@pytest.mark.parametrize("path", ["/v2/models/tiny", "/v2/models/tiny/versions/1"])
def test_a_model_describes_its_tensors(client, path):
    answer = client.get(path).json()
    assert (answer["name"], answer["versions"], answer["platform"]) == ("tiny", ["1"], "onnx_onnxv1")
    assert answer["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 32, 32, 3]}]
    shapes = {output["name"]: output["shape"] for output in answer["outputs"]}
    assert shapes["logits"] == [-1, 4]
    assert shapes["assignment_1"][:2] == [-1, 5]
    assert all(output["datatype"] == "FP32" for output in answer["outputs"])
    assert client.get(f"{path}/ready").json() == {"name": "tiny", "ready": True}


def test_the_second_name_takes_encoded_pictures(client):
    assert client.get("/v2/models/tiny-image").json()["inputs"] == [
        {"name": "image", "datatype": "BYTES", "shape": [-1]}
    ]


@pytest.mark.parametrize(
    "path", ["/v2/models/other", "/v2/models/tiny/versions/7", "/v2/models/other-image/ready"]
)
def test_what_is_not_there_is_404_in_the_protocols_form(client, path):
    assert client.get(path).status_code == 404
    assert client.get(path).json().keys() == {"error"}


def test_every_output_is_answered_unless_some_are_named(client):
    everything = infer(client, pixels(), id="42").json()
    assert (everything["model_name"], everything["model_version"], everything["id"]) == ("tiny", "1", "42")
    assert {"logits", "tokens", "assignment_1", "assignment_2"} <= {
        output["name"] for output in everything["outputs"]
    }
    for output in everything["outputs"]:
        assert len(output["data"]) == math.prod(output["shape"])
    some = infer(client, pixels(), outputs=[{"name": "assignment_2"}, {"name": "logits"}]).json()
    assert [output["name"] for output in some["outputs"]] == ["assignment_2", "logits"]


def test_rows_of_an_assignment_sum_to_one(client):
    (output,) = infer(client, pixels(2), outputs=[{"name": "assignment_1"}]).json()["outputs"]
    batch, clusters, height, width = output["shape"]
    assert (batch, clusters) == (2, 5)
    np.testing.assert_allclose(
        np.reshape(output["data"], (batch, clusters, height * width)).sum(-1), 1, atol=1e-5
    )


def test_a_batch_answers_each_picture_as_if_alone(client):
    both = infer(client, pixels(2), outputs=[{"name": "logits"}]).json()["outputs"][0]["data"]
    first = infer(client, pixels(1), outputs=[{"name": "logits"}]).json()["outputs"][0]["data"]
    np.testing.assert_allclose(both[:4], first, atol=1e-4)


@pytest.mark.parametrize("form", ["json", "binary"])
def test_encoded_pictures_are_answered_as_classify_does(client, jpeg, form):
    if form == "json":
        member: dict[str, object] = {
            "name": "image",
            "shape": [1],
            "datatype": "BYTES",
            "data": [base64.b64encode(jpeg).decode()],
        }
        answer = infer(client, member, path="/v2/models/tiny-image/infer", outputs=[{"name": "logits"}])
    else:
        raw = len(jpeg).to_bytes(4, "little") + jpeg
        member = {
            "name": "image",
            "shape": [1, 1],
            "datatype": "BYTES",
            "parameters": {"binary_data_size": len(raw)},
        }
        head = json.dumps({"inputs": [member], "outputs": [{"name": "logits"}]}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        answer = client.post("/v2/models/tiny-image/versions/1/infer", content=head + raw, headers=headers)
    predictions = sorted(
        client.post("/classify", content=jpeg).json()["predictions"], key=lambda p: p["class_id"]
    )
    np.testing.assert_allclose(
        answer.json()["outputs"][0]["data"], [p["logit"] for p in predictions], atol=1e-5
    )


def test_outputs_come_as_raw_bytes_where_wished(client):
    outputs = [{"name": "logits", "parameters": {"binary_data": False}}, {"name": "assignment_1"}]
    answer = infer(client, pixels(), outputs=outputs, parameters={"binary_data_output": True})
    head = int(answer.headers["inference-header-content-length"])
    logits, assignment = json.loads(answer.content[:head])["outputs"]
    assert len(logits["data"]) == 4
    values = np.frombuffer(answer.content[head:], "<f4")
    assert assignment["parameters"] == {"binary_data_size": values.nbytes}
    assert values.size == math.prod(assignment["shape"])


def test_a_classification_names_the_best_classes(client):
    (output,) = infer(
        client, pixels(2), outputs=[{"name": "logits", "parameters": {"classification": 2}}]
    ).json()["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 2])
    value, index, label = output["data"][0].split(":")
    assert float(value) >= float(output["data"][1].split(":")[0])
    assert label == ("red", "green", "blue", "grey")[int(index)]


@pytest.mark.parametrize(
    "members",
    [
        {"name": "picture"},
        {"shape": [1, 31, 32, 3]},
        {"shape": [32, 32, 3]},
        {"datatype": "FP32"},
        {"datatype": "BYTES", "shape": [1], "data": ["AAAA"]},
        {"shape": [0, 32, 32, 3], "data": []},
    ],
)
def test_a_wrong_tensor_is_the_callers_error(client, members):
    answer = infer(client, pixels(**members))
    assert answer.status_code in (400, 413, 422)
    assert answer.json().keys() == {"error"}


@pytest.mark.parametrize(
    "outputs",
    [
        [{"name": "nothing"}],
        [{"name": "tokens", "parameters": {"classification": 2}}],
        [{"name": "logits", "parameters": {"classification": 0}}],
    ],
)
def test_a_wrong_output_is_the_callers_error(client, outputs):
    assert infer(client, pixels(), outputs=outputs).status_code in (400, 422)


def test_an_undecodable_picture_is_the_callers_error(client, jpeg):
    member = {
        "name": "image",
        "shape": [1],
        "datatype": "BYTES",
        "data": [base64.b64encode(jpeg[:3000]).decode()],
    }
    assert infer(client, member, path="/v2/models/tiny-image/infer").status_code == 422


def test_one_large_picture_among_many_empty_ones_takes_no_memory_of_their_product(client):
    raw = (1 << 20).to_bytes(4, "little") + bytes(1 << 20) + bytes(4) * 20_000
    member = {
        "name": "image",
        "shape": [20_001],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(raw)},
    }
    head = json.dumps({"inputs": [member], "outputs": [{"name": "logits"}]}).encode()
    answer = client.post(
        "/v2/models/tiny-image/infer",
        content=head + raw,
        headers={"Inference-Header-Content-Length": str(len(head))},
    )
    assert answer.status_code == 413
    assert "20001 pictures" in answer.json()["error"]


@pytest.mark.parametrize(
    "image",
    [
        {"shape": [], "data": [3]},
        {"shape": [0, 32, 32, 3], "data": []},
        {"shape": [1, 32, 32, 3], "data": []},
        {"shape": [1, 32, 32, 5], "data": [0] * 32 * 32 * 5},
        {"shape": [1, 16, 16, 3], "data": [0] * 16 * 16 * 3},
    ],
    ids=["no sizes", "no picture", "no data", "five channels", "another size"],
)
def test_a_tensor_that_cannot_be_a_picture_is_the_callers_fault(client, image):
    response = infer(client, pixels(**image))
    assert response.status_code in (400, 422)
    assert response.json().keys() == {"error"}
