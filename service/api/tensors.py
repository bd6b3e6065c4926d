"""Tensors of the Open Inference Protocol v2 on the wire: as JSON numbers, and as raw bytes after the JSON
(the binary tensor data extension).

Values are little-endian and row-major; a BYTES element is a 4-byte length and its bytes. Every mismatch of
sizes is a MalformedRequest. What the tensors mean is `oip`'s.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import EngineFailure, MalformedRequest
from .uploads import load_json

DTYPES = {
    "BOOL": np.dtype("?"),
    **{
        f"{kind}{bits}": np.dtype(f"<{code}{bits // 8}")
        for kind, code in (("UINT", "u"), ("INT", "i"))
        for bits in (8, 16, 32, 64)
    },
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
}
MAX_JSON_VALUES = 2_000_000
Values = dict[str, str | bool | int | float]


class Part(BaseModel):
    """Members the protocol does not name are ignored, as it asks."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class InputTensor(Part):
    name: str = Field(max_length=100, description="The input's name.", examples=["image"])
    shape: list[int] = Field(max_length=8, description="Its sizes.", examples=[[1, 2, 2, 3]])
    datatype: str = Field(
        max_length=8, description="BOOL, UINT8…UINT64, INT8…INT64, FP16…FP64 or BYTES.", examples=["UINT8"]
    )
    parameters: Values = Field({}, description="`binary_data_size`: the tensor's bytes follow the JSON.")
    data: list[Any] | None = Field(
        None,
        description="Values, nested or flat, row-major; BYTES as base64 texts.",
        examples=[[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]],
    )


class RequestedOutput(Part):
    name: str = Field(max_length=100, description="The output's name.", examples=["logits"])
    parameters: Values = Field(
        {},
        description="`binary_data`: answer as raw bytes; `classification`: the k best as `value:index:label` "
        "texts.",
    )


class InferenceRequest(Part):
    id: str | None = Field(None, max_length=200, description="Echoed in the answer.", examples=["42"])
    parameters: Values = Field({}, description="`binary_data_output`: all outputs as raw bytes.")
    inputs: list[InputTensor] = Field(min_length=1, max_length=8)
    outputs: list[RequestedOutput] | None = Field(
        None, max_length=32, description="Default: all outputs of the model."
    )


class OutputTensor(BaseModel):
    name: str = Field(description="The output's name.", examples=["logits"])
    shape: list[int] = Field(description="Its sizes.", examples=[[1, 10]])
    datatype: str = Field(description="FP32, or BYTES for a classification.", examples=["FP32"])
    parameters: Values | None = Field(
        None, description="`binary_data_size`: the tensor's bytes follow the JSON."
    )
    data: list[Any] | None = Field(None, description="Values, flat, row-major.", examples=[[9.1, 0.2]])


class InferenceResponse(BaseModel):
    model_name: str = Field(description="Which model answered.", examples=["imagenette"])
    model_version: str = Field(description="Which version of it.", examples=["1"])
    id: str | None = Field(None, description="The request's.", examples=["42"])
    outputs: list[OutputTensor]


def read_request(
    body: bytes, header_length: str | None
) -> tuple[InferenceRequest, dict[str, np.ndarray | list[bytes]]]:
    """(request, tensors by input name). header_length: the header Inference-Header-Content-Length, if the
    body carries raw tensors."""
    head = len(body)
    if header_length is not None:
        if not header_length.isdecimal() or int(header_length) > len(body):
            raise MalformedRequest(
                "Inference-Header-Content-Length must be the number of bytes of the JSON part of the body"
            )
        head = int(header_length)
    try:
        request = InferenceRequest.model_validate(load_json(body[:head], MAX_JSON_VALUES))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise MalformedRequest(
            f"the inference request is not valid: {'.'.join(map(str, first['loc']))[:80]}: {first['msg']}"
        ) from None
    raw = memoryview(body)[head:]
    tensors: dict[str, np.ndarray | list[bytes]] = {}
    for given in request.inputs:
        if given.name in tensors:
            raise MalformedRequest(f"the input {given.name!r} is given twice")
        size = given.parameters.get("binary_data_size")
        if size is None:
            tensors[given.name] = _from_json(given)
        else:
            if (
                given.data is not None
                or not isinstance(size, int)
                or isinstance(size, bool)
                or not 0 <= size <= len(raw)
            ):
                raise MalformedRequest(
                    f"the input {given.name!r} must have either data or a binary_data_size within the body"
                )
            tensors[given.name] = _from_bytes(given, raw[:size])
            raw = raw[size:]
    if len(raw):
        raise MalformedRequest(f"{len(raw)} bytes follow the last tensor")
    return request, tensors


def _count(tensor: InputTensor) -> int:
    if any(size < 0 for size in tensor.shape):
        raise MalformedRequest(f"the input {tensor.name!r} has a negative size in its shape")
    return math.prod(tensor.shape)


def _dtype(tensor: InputTensor) -> np.dtype:
    if tensor.datatype not in DTYPES:
        raise MalformedRequest(
            f"unknown datatype of the input {tensor.name!r}; there are: {', '.join((*DTYPES, 'BYTES'))}"
        )
    return DTYPES[tensor.datatype]


def _from_bytes(tensor: InputTensor, raw: memoryview) -> np.ndarray | list[bytes]:
    if tensor.datatype == "BYTES":
        items = []
        while len(raw):
            length = struct.unpack_from("<I", raw)[0] if len(raw) >= 4 else len(raw)
            if 4 + length > len(raw):
                raise MalformedRequest(f"the input {tensor.name!r} ends within an element")
            items.append(bytes(raw[4 : 4 + length]))
            raw = raw[4 + length :]
        return _fitting(tensor, items)
    dtype = _dtype(tensor)
    if len(raw) != _count(tensor) * dtype.itemsize:
        raise MalformedRequest(
            f"the input {tensor.name!r} of shape {tensor.shape} needs {_count(tensor) * dtype.itemsize} "
            f"bytes, not {len(raw)}"
        )
    return np.frombuffer(raw, dtype).reshape(tensor.shape)


def _from_json(tensor: InputTensor) -> np.ndarray | list[bytes]:
    if tensor.data is None:
        raise MalformedRequest(f"the input {tensor.name!r} has neither data nor binary_data_size")
    if tensor.datatype == "BYTES":
        return _fitting(tensor, [_decoded(item, tensor.name) for item in _flat(tensor.data)])
    dtype = _dtype(tensor)
    if tensor.datatype == "FP16":
        raise MalformedRequest("FP16 has no JSON form; send it as binary data")
    try:
        values = np.array(tensor.data)
    except ValueError:
        values = np.array(None)
    with np.errstate(over="ignore", invalid="ignore"):
        exact = values.astype(dtype) if values.dtype.kind in _ALLOWED[dtype.kind] else None
    if exact is None or not (
        np.isfinite(exact).all() if dtype.kind == "f" else np.array_equal(exact, values)
    ):
        raise MalformedRequest(
            f"the data of the input {tensor.name!r} is ragged, or not {tensor.datatype} throughout"
        )
    if values.size != _count(tensor) or (values.ndim > 1 and list(values.shape) != tensor.shape):
        raise MalformedRequest(
            f"the data of the input {tensor.name!r} has shape {list(values.shape)}, its shape says "
            f"{tensor.shape}"
        )
    return exact.reshape(tensor.shape)


_ALLOWED = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}  # kinds of JSON numbers for each kind of type


def _flat(data: list[Any]) -> list[Any]:
    return [item for row in data for item in (row if isinstance(row, list) else [row])]


def _decoded(text: object, name: str) -> bytes:
    try:
        if isinstance(text, str):
            return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        pass
    raise MalformedRequest(f"elements of the BYTES input {name!r} are base64 texts in JSON")


def _fitting(tensor: InputTensor, items: list[bytes]) -> list[bytes]:
    if len(items) != _count(tensor):
        raise MalformedRequest(
            f"the input {tensor.name!r} has {len(items)} elements, its shape says {_count(tensor)}"
        )
    return items


def write_response(
    response: InferenceResponse, arrays: dict[str, np.ndarray | list[bytes]], binary: set[str]
) -> tuple[bytes, int | None]:
    """(body, length of its JSON part if raw tensors follow). arrays: the values of `response.outputs`, which
    still lack them; binary: which go raw."""
    raw = []
    for output in response.outputs:
        values = arrays[output.name]
        if output.name in binary:
            raw.append(_to_bytes(values))
            output.parameters = {"binary_data_size": len(raw[-1])}
        elif isinstance(values, list):
            output.data = [item.decode() for item in values]
        elif not np.isfinite(values).all():
            raise EngineFailure(f"the output {output.name!r} holds values that are not finite numbers")
        else:
            output.data = values.ravel().tolist()
    head = response.__pydantic_serializer__.to_json(response, exclude_none=True)
    return (head + b"".join(raw), len(head)) if binary else (head, None)


def _to_bytes(values: np.ndarray | list[bytes]) -> bytes:
    if isinstance(values, list):
        return b"".join(struct.pack("<I", len(item)) + item for item in values)
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
