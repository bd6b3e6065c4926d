"""Messages of the protocol to plain requests of the data plane, and its results to messages.

Inputs come raw or as single values, and outputs go as the inputs came. What a message may hold is bounded
before it becomes objects. Tensors are checked by `api.tensors`, as over HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.message import DecodeError

from ...dataplane import InferRequest, InferResult
from ...errors import MalformedRequest
from .. import tensors
from ..serialise import PIECE_VALUES
from . import envelope_pb2
from . import open_inference_pb2 as pb

# Of a request beside its raw contents: as objects they take up to 44 times as much.
MAX_STRUCTURE_BYTES = 1 << 20
MAX_RESPONSE_BYTES = 64 << 20
# The field that holds single values of a datatype; FP16 has none.
CONTENTS = {
    "BOOL": "bool_contents",
    **{f"{u}INT{bits}": f"{u.lower()}int_contents" for u in ("", "U") for bits in (8, 16, 32)},
    **{f"{u}INT64": f"{u.lower()}int64_contents" for u in ("", "U")},
    **{f"FP{bits}": f"fp{bits}_contents" for bits in (32, 64)},
    "BYTES": "bytes_contents",
}


def parsed(kind: Any, data: bytes) -> Any:
    """A message of that class; MalformedRequest where the bytes are none."""
    try:
        return kind.FromString(data)
    except DecodeError:
        raise MalformedRequest(f"the message is no {kind.DESCRIPTOR.full_name}") from None


def check_size(size: int) -> None:
    """MalformedRequest where a response of so many bytes is more than one message takes."""
    if size > MAX_RESPONSE_BYTES:
        raise MalformedRequest(
            f"the response would be {size / 2**20:.0f} MiB, at most {MAX_RESPONSE_BYTES >> 20} go into one "
            "message; name the outputs that you need, or send fewer pictures"
        )


def read_infer(data: bytes) -> tuple[pb.ModelInferRequest, InferRequest]:
    """(the message, what the data plane is to run). MalformedRequest where they do not fit."""
    if len(data) > MAX_STRUCTURE_BYTES:
        structure = len(data) - len(parsed(envelope_pb2.Envelope, data).raw_input_contents)
        if structure > MAX_STRUCTURE_BYTES:
            raise MalformedRequest(
                f"the request holds {structure} bytes beside its raw_input_contents, at most "
                f"{MAX_STRUCTURE_BYTES} are taken; send tensors and pictures there"
            )
    request = parsed(pb.ModelInferRequest, data)
    raw, inputs = request.raw_input_contents, request.inputs
    if raw and (len(raw) != len(inputs) or any(tensor.HasField("contents") for tensor in inputs)):
        raise MalformedRequest(
            "raw_input_contents has one entry for each input, and then no input has contents"
        )
    outputs = request.outputs[: tensors.MAX_OUTPUTS + 1]
    wire = tensors.validated(
        {
            "inputs": [_input(tensor) for tensor in inputs[: tensors.MAX_INPUTS + 1]],
            "outputs": [{"name": o.name, "parameters": _values(o.parameters)} for o in outputs] or None,
        }
    )
    if raw:
        values = [
            tensors.from_bytes(tensor, memoryview(part))
            for tensor, part in zip(wire.inputs, raw, strict=True)
        ]
    else:
        values = [tensors.from_values(tensor) for tensor in wire.inputs]
    given = {tensor.name: value for tensor, value in zip(wire.inputs, values, strict=True)}
    return request, tensors.infer_request(request.model_name, request.model_version or None, wire, given)


def _input(tensor: pb.ModelInferRequest.InferInputTensor) -> dict[str, Any]:
    field = CONTENTS.get(tensor.datatype)
    data = list(getattr(tensor.contents, field)) or None if field else None
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape), "data": data}


def _values(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    """Parameters by name; those without a value are left out."""
    chosen = {name: parameter.WhichOneof("parameter_choice") for name, parameter in parameters.items()}
    return {name: getattr(parameters[name], choice) for name, choice in chosen.items() if choice}


def write_infer(request: pb.ModelInferRequest, result: InferResult) -> bytes:
    """The response, serialised output by output, so that other threads have their turn between two. Messages
    that follow each other, serialised, are one message with their repeated fields joined (protobuf's guide to
    its encoding)."""
    head = pb.ModelInferResponse(model_name=request.model_name, model_version=result.version, id=request.id)
    parts = [head.SerializeToString()]
    for name, values in result.outputs.items():
        part, tensor = pb.ModelInferResponse(), tensors.described(name, values, result.pictures)
        output = part.outputs.add(name=name, datatype=tensor.datatype, shape=tensor.shape)
        if request.raw_input_contents:
            part.raw_output_contents.append(tensors.to_bytes(values))
        elif isinstance(values, list):
            output.contents.bytes_contents.extend(values)
        else:
            flat = values.ravel()
            for start in range(0, len(flat), PIECE_VALUES):
                output.contents.fp32_contents.extend(flat[start : start + PIECE_VALUES].tolist())
        parts.append(part.SerializeToString())
    return b"".join(parts)
