"""Tensors on the wire, in both forms, and every way of getting their sizes wrong."""

import base64
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.api.tensors import DTYPES, check_json_size, read_request, write_response
from service.dataplane import InferResult
from service.errors import EngineFailure, MalformedRequest


def tensor(**members):
    return {"name": "image", "shape": [2], "datatype": "UINT8"} | members


def from_json(**members):
    return read_request(json.dumps({"inputs": [tensor(**members)]}).encode(), None)[1]["image"]


def from_bytes(raw: bytes, size: int | None = None, **members):
    head = json.dumps(
        {"inputs": [tensor(parameters={"binary_data_size": len(raw) if size is None else size}, **members)]}
    ).encode()
    return read_request(head + raw, str(len(head)))[1]["image"]


# FP16 has no JSON form; UINT64 beside smaller numbers is promoted to float by numpy and refused, and no model
# takes it.
@given(st.sampled_from([name for name in DTYPES if name not in ("FP16", "UINT64")]), st.data())
@settings(max_examples=60, deadline=None)
def test_json_and_binary_carry_the_same_numbers(name, data):
    dtype = DTYPES[name]
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=4))
    elements = hnp.from_dtype(dtype, allow_nan=False, allow_infinity=False)
    values = data.draw(hnp.arrays(dtype, shape, elements=elements))
    members = {"shape": list(shape), "datatype": name}
    for got in (
        from_json(data=values.tolist(), **members),
        from_json(data=values.ravel().tolist(), **members),
        from_bytes(values.tobytes(), **members),
    ):
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, values)


def test_bytes_elements_have_a_length_each_or_are_base64():
    items = [b"one", b"", b"\xff\x00"]
    raw = b"".join(struct.pack("<I", len(item)) + item for item in items)
    texts = [base64.b64encode(item).decode() for item in items]
    assert from_bytes(raw, shape=[3], datatype="BYTES") == items
    assert from_json(data=texts, shape=[3], datatype="BYTES") == items
    assert from_json(data=[[text] for text in texts], shape=[3, 1], datatype="BYTES") == items


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"data": [1]},
        {"data": [1, 2, 3]},
        {"data": [1, 256]},
        {"data": [1, -1]},
        {"data": [1, 2.5]},
        {"data": [1, "2"]},
        {"data": [1, None]},
        {"data": [[1], [2, 3]]},
        {"data": [[1, 2]]},
        {"data": [1, 10**30]},
        {"data": [[[[[[[[[[1, 2]]]]]]]]]]},
        {"data": [1, 2], "shape": [-1, -2]},
        {"data": [1, 2], "shape": [2**40, 2**40]},
        {"data": [1, 2], "shape": "2"},
        {"data": [1, 2], "datatype": "UINT7"},
        {"data": [1, 2], "datatype": "FP16"},
        {"data": ["§", "aa"], "datatype": "BYTES"},
        {"data": [1, 2], "datatype": "BYTES"},
        {"data": [1, 2], "parameters": {"binary_data_size": 0}},
        {"data": [1, 2], "parameters": {"binary_data_size": True}},
    ],
)
def test_json_that_does_not_fit_its_shape_or_type_is_malformed(members):
    with pytest.raises(MalformedRequest):
        from_json(**members)


@pytest.mark.parametrize(
    ("raw", "members"),
    [
        (b"123", {}),
        (b"1", {}),
        (b"12", {"size": 3}),
        (b"12", {"size": 1, "shape": [1]}),
        (b"12", {"size": -1}),
        (b"12", {"size": "2"}),
        (b"123", {"datatype": "FP32"}),
        (b"\x05\x00\x00\x00ab", {"datatype": "BYTES", "shape": [1]}),
        (b"\x05\x00", {"datatype": "BYTES", "shape": [1]}),
        (b"\x00\x00\x00\x00", {"datatype": "BYTES", "shape": [2]}),
    ],
)
def test_bytes_that_do_not_fit_are_malformed(raw, members):
    with pytest.raises(MalformedRequest):
        from_bytes(raw, **members)


@pytest.mark.parametrize("header", ["", "x", "-1", "1e3", "99999", "5"])
def test_a_wrong_header_length_is_malformed(header):
    with pytest.raises(MalformedRequest):
        read_request(json.dumps({"inputs": [tensor(data=[1, 2])]}).encode(), header)


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        {"inputs": []},
        {"inputs": {}},
        {"inputs": [tensor(data=[1, 2])] * 2},
        {"inputs": [tensor(data=[1, 2], name=5)]},
    ],
)
def test_a_request_of_another_shape_is_malformed(document):
    with pytest.raises(MalformedRequest):
        read_request(json.dumps(document).encode(), None)


def test_members_the_protocol_does_not_name_are_ignored():
    assert (
        read_request(json.dumps({"inputs": [tensor(data=[1, 2], colour="red")], "extra": 1}).encode(), None)[
            0
        ].id
        is None
    )


def result(**outputs):
    return InferResult("m", "1", 1, outputs)


def test_raw_outputs_follow_the_json_in_order():
    values = {name: np.array([[i, i + 0.5]], np.float32) for i, name in enumerate(("a", "b", "c"))}
    pieces, head = write_response("m", "7", result(**values), {"a", "c"})
    body = b"".join(pieces)
    document = json.loads(body[:head])
    assert document["id"] == "7"
    assert [o.get("data") for o in document["outputs"]] == [None, [1.0, 1.5], None]
    assert [o.get("parameters") for o in document["outputs"]] == [
        {"binary_data_size": 8},
        None,
        {"binary_data_size": 8},
    ]
    assert body[head:] == values["a"].tobytes() + values["c"].tobytes()


def test_a_long_output_written_in_pieces_is_one_list():
    values = np.random.default_rng(0).normal(size=(1, 50_001)).astype(np.float32)
    pieces, head = write_response("m", None, result(a=values), set())
    assert head is None
    [output] = json.loads(b"".join(pieces))["outputs"]
    assert output["shape"] == [1, 50_001]
    np.testing.assert_array_equal(np.array(output["data"], np.float32), values[0])


def test_classes_are_texts_in_rows():
    pieces, _ = write_response("m", None, result(logits=[b"2.0:1:ball", b"1.0:0:cat"]), set())
    [output] = json.loads(b"".join(pieces))["outputs"]
    assert (output["shape"], output["datatype"], output["data"][0]) == ([1, 2], "BYTES", "2.0:1:ball")


def test_numbers_json_does_not_know_are_an_engine_failure_not_bad_json():
    with pytest.raises(EngineFailure):
        write_response("m", None, result(a=np.array([[1, np.nan]], np.float32)), set())


def test_a_json_response_above_the_limit_is_refused_with_its_size_and_the_ways_out():
    check_json_size(1, [[None, 49, 16, 16]])
    with pytest.raises(MalformedRequest, match=r"244 MiB of JSON.*name the outputs.*binary"):
        check_json_size(128, [[None, 100_000]])
