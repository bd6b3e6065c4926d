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
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..dataplane import InferRequest, InferResult, OutputRequest
from ..errors import EngineFailure, MalformedRequest
from .serialise import join, numbers
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
MAX_JSON_VALUES = 500_000  # of a request; reading them holds the interpreter for about 0.1 s
MAX_INPUTS, MAX_OUTPUTS = 8, 32  # that a request may name
MAX_JSON_BYTES = 64 << 20  # of a response
BYTES_A_VALUE = 20  # of float32 as JSON writes it, its comma included
Values = dict[str, str | bool | int | float]
Tensors = Mapping[str, np.ndarray | list[bytes]]  # by input name


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

    @property
    def best(self) -> int | None:
        """The parameter `classification`: MalformedRequest where it is no number."""
        value = self.parameters.get("classification")
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise MalformedRequest("`classification` is how many classes to answer, a whole number from 1")
        return value


class InferenceRequest(Part):
    id: str | None = Field(None, max_length=200, description="Echoed in the answer.", examples=["42"])
    parameters: Values = Field({}, description="`binary_data_output`: all outputs as raw bytes.")
    inputs: list[InputTensor] = Field(min_length=1, max_length=MAX_INPUTS)
    outputs: list[RequestedOutput] | None = Field(
        None, max_length=MAX_OUTPUTS, description="Default: all outputs of the model."
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
    request = validated(load_json(body[:head], MAX_JSON_VALUES))
    raw = memoryview(body)[head:]
    tensors: dict[str, np.ndarray | list[bytes]] = {}
    for given in request.inputs:
        if given.name in tensors:
            raise MalformedRequest(f"the input {given.name!r} is given twice")
        size = given.parameters.get("binary_data_size")
        if size is None:
            tensors[given.name] = from_values(given)
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
            tensors[given.name] = from_bytes(given, raw[:size])
            raw = raw[size:]
    if len(raw):
        raise MalformedRequest(f"{len(raw)} bytes follow the last tensor")
    return request, tensors


def validated(document: object) -> InferenceRequest:
    """A request of these members; MalformedRequest says the first that is wrong."""
    try:
        return InferenceRequest.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise MalformedRequest(
            f"the inference request is not valid: {'.'.join(map(str, first['loc']))[:80]}: {first['msg']}"
        ) from None


def infer_request(
    name: str, version: str | None, request: InferenceRequest, tensors: Tensors
) -> InferRequest:
    """What the data plane is to run. MalformedRequest where the inputs are not the one that models take."""
    if [tensor.name for tensor in request.inputs] != ["image"]:
        raise MalformedRequest("the model takes one input, named 'image'")
    requested = None
    if request.outputs is not None:
        requested = tuple(OutputRequest(output.name, output.best) for output in request.outputs)
    return InferRequest(name, version, tensors["image"], requested)


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


def from_bytes(tensor: InputTensor, raw: memoryview) -> np.ndarray | list[bytes]:
    """A tensor of raw values, row-major and little-endian."""
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


def from_values(tensor: InputTensor) -> np.ndarray | list[bytes]:
    """A tensor of single values: numbers, of BYTES base64 texts (JSON) or bytes."""
    if tensor.datatype == "FP16":
        raise MalformedRequest("FP16 has no form as single values; send it as raw bytes")
    dtype = None if tensor.datatype == "BYTES" else _dtype(tensor)
    if tensor.data is None:
        raise MalformedRequest(f"the input {tensor.name!r} has no data of its datatype")
    if dtype is None:
        return _fitting(tensor, [_decoded(item, tensor.name) for item in _flat(tensor.data)])
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
        if isinstance(text, bytes):
            return text
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


def binary_outputs(request: InferenceRequest, outputs: list[RequestedOutput]) -> set[str]:
    """The names of the outputs that go as raw bytes."""
    everything = request.parameters.get("binary_data_output") is True
    return {output.name for output in outputs if output.parameters.get("binary_data", everything) is True}


def count_values(pictures: int, shapes: Iterable[list[int | str | None]]) -> int:
    """How many numbers these outputs of so many pictures hold. shapes: of each output, the batch first; a
    size that is not known before the run counts as 1."""
    return pictures * sum(math.prod(n for n in shape[1:] if isinstance(n, int)) for shape in shapes)


def check_json_size(pictures: int, shapes: Iterable[list[int | str | None]]) -> None:
    """MalformedRequest where these outputs of so many pictures are larger as JSON than a response may be."""
    size = count_values(pictures, shapes) * BYTES_A_VALUE
    if size > MAX_JSON_BYTES:
        raise _too_much_json(size)


def _too_much_json(size: int) -> MalformedRequest:
    return MalformedRequest(
        f"the response would be {size / 2**20:.0f} MiB of JSON, at most {MAX_JSON_BYTES >> 20} are given; "
        "name "
        "the outputs that you need, or ask for binary data (binary_data_output)",
        limit="max_json_bytes",
        value=MAX_JSON_BYTES,
    )


def write_response(
    name: str, request_id: str | None, result: InferResult, binary: set[str]
) -> tuple[list[bytes], int | None]:
    """(body in pieces, length of its JSON part if raw tensors follow). name: the model as the caller named
    it; binary: the outputs that go raw. EngineFailure where a number is not finite and has no JSON form."""
    raw: list[bytes] = []
    head = [_opening(name, request_id, result)]
    for i, (output, values) in enumerate(result.outputs.items()):
        tensor = described(output, values, result.pictures)
        if output in binary:
            raw.append(to_bytes(values))
            tensor.parameters = {"binary_data_size": len(raw[-1])}
        elif isinstance(values, list):
            tensor.data = [item.decode() for item in values]
        text = tensor.__pydantic_serializer__.to_json(tensor, exclude_none=True)
        head.append(b"," if i else b"")
        if output in binary or isinstance(values, list):
            head.append(text)
            continue
        if not np.isfinite(values).all():
            raise EngineFailure(f"the output {output!r} holds values that are not finite numbers")
        head += [text[:-1], b',"data":', *numbers(values), b"}"]
        if sum(map(len, head)) > MAX_JSON_BYTES:
            raise _too_much_json(sum(map(len, head)))
    head.append(b"]}")
    if not binary:
        return join(head), None
    text = b"".join(head)
    return [text, *raw], len(text)


def described(name: str, values: np.ndarray | list[bytes], pictures: int) -> OutputTensor:
    """An output without its values. pictures: how many the values are of."""
    if isinstance(values, list):
        return OutputTensor(name=name, shape=[pictures, len(values) // pictures], datatype="BYTES")
    return OutputTensor(name=name, shape=list(np.shape(values)), datatype="FP32")


def _opening(name: str, request_id: str | None, result: InferResult) -> bytes:
    """The response up to its outputs."""
    response = InferenceResponse(model_name=name, model_version=result.version, id=request_id, outputs=[])
    text: bytes = response.__pydantic_serializer__.to_json(response, exclude_none=True)
    return text.removesuffix(b"]}")


def to_bytes(values: np.ndarray | list[bytes]) -> bytes:
    """A tensor's values raw, as `from_bytes` takes them."""
    if isinstance(values, list):
        return b"".join(struct.pack("<I", len(item)) + item for item in values)
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
