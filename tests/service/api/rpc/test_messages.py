"""Messages that no ordinary client sends: each is refused in one line, and none takes more memory than it is
worth."""

from __future__ import annotations

import psutil
import pytest

from tests.service.api.rpc.conftest import grpc, infer_message, triton, unary

pb = triton.service_pb2


def refused(channel, message: bytes, method: str = "ModelInfer") -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as told:
        unary(channel, method)(message, timeout=120)
    return told.value.code().name, told.value.details()


def changed(**members) -> bytes:
    """A request for one grey pixel picture, with other members of its input."""
    given = {"name": "image", "datatype": "UINT8", "shape": [1, 32, 32, 3]} | members
    return pb.ModelInferRequest(model_name="tiny", inputs=[given]).SerializeToString()


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"\xff\xff", "no inference.ModelInferRequest"),
        (b"", "inputs"),
        (changed(), "has no data"),
        (changed(contents={"fp32_contents": [1.0]}), "has no data"),
        (changed(contents={"uint_contents": [256] * 3072}), "not UINT8"),
        (changed(contents={"uint_contents": [1] * 3071}), "shape"),
        (changed(datatype="FP16", contents={"fp32_contents": [1.0]}), "send it as raw"),
        (changed(datatype="COMPLEX"), "unknown datatype"),
        (changed(name="picture", contents={"uint_contents": [1] * 3072}), "one input, named 'image'"),
        (changed(shape=[-1, 32, 32, 3], contents={"uint_contents": [1]}), "negative"),
        (changed(shape=[1] * 9, contents={"uint_contents": [1]}), "shape"),
    ],
)
def test_what_does_not_fit_is_the_callers_error(channel, message, words):
    code, text = refused(channel, message)
    assert code == "INVALID_ARGUMENT"
    assert words in text


def test_raw_contents_belong_to_the_inputs_one_each(channel, jpeg):
    twice = infer_message(jpeg)
    twice.raw_input_contents.append(b"more")
    both = infer_message(jpeg)
    both.inputs[0].contents.bytes_contents.append(jpeg)
    for message in (twice, both):
        code, text = refused(channel, message.SerializeToString())
        assert code == "INVALID_ARGUMENT"
        assert "raw_input_contents" in text


def test_an_input_given_twice_is_refused(channel, jpeg):
    message = infer_message(jpeg)
    message.inputs.append(message.inputs[0])
    message.raw_input_contents.append(message.raw_input_contents[0])
    assert refused(channel, message.SerializeToString())[0] == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    "element",
    [
        b"\x2a\x00",  # an input
        b"\x32\x00",  # an output
        b"\x3a\x00",  # raw contents
        b"\x22\x00",  # a parameter
    ],
)
def test_millions_of_empty_elements_are_refused_before_they_become_objects(door, channel, element):
    server = psutil.Process(door.serving.process.pid)
    before = server.memory_info().rss
    code, text = refused(channel, element * 8_000_000)
    assert code == "INVALID_ARGUMENT"
    assert "beside its raw_input_contents" in text
    assert server.memory_info().rss - before < 300 << 20
