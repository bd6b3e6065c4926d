"""Open Inference Protocol v2 (KServe, Triton): the model's graph as it is, and a second name `<model>-image`
whose input is encoded photos.

Cluster assignments and tokens are ordinary outputs, so any client of the protocol can explain. Only the
outputs asked for are computed. Models are never loaded or unloaded from here.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from .. import __version__
from ..errors import MalformedRequest, TooLarge, UnknownModel
from ..predictor import MAX_ROWS, Predictor, gather
from . import openapi
from .admission import run_until_deadline
from .context import context
from .state import State, state
from .tensors import (
    InferenceRequest,
    InferenceResponse,
    OutputTensor,
    RequestedOutput,
    read_request,
    write_response,
)
from .uploads import read_body

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])
IMAGE = "-image"
HEADER = "Inference-Header-Content-Length"
PLATFORM = "onnx_onnxv1"


class Live(BaseModel):
    live: bool = Field(description="The process answers.", examples=[True])


class Ready(BaseModel):
    ready: bool = Field(description="Requests are answered.", examples=[True])


class ModelReady(Ready):
    name: str = Field(description="The model.", examples=["imagenette"])


class ServerMetadata(BaseModel):
    name: str = Field(description="The server.", examples=["paca"])
    version: str = Field(description="Its version.", examples=[__version__])
    extensions: list[str] = Field(description="Protocol extensions.", examples=[["binary_tensor_data"]])


class Models(BaseModel):
    models: list[str] = Field(
        description="Every name that answers.", examples=[["imagenette", "imagenette-image"]]
    )


class TensorMetadata(BaseModel):
    name: str = Field(description="The tensor.", examples=["logits"])
    datatype: str = Field(description="Its type.", examples=["FP32"])
    shape: list[int] = Field(description="Its sizes, -1 = any.", examples=[[-1, 10]])


class ModelMetadata(BaseModel):
    name: str = Field(description="The model.", examples=["imagenette"])
    versions: list[str] = Field(description="Loaded versions.", examples=[["1"]])
    platform: str = Field(description="What it runs as.", examples=[PLATFORM])
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class Failure(BaseModel):
    error: str = Field(description="What was wrong and what to do.", examples=["there is no model 'x'"])


@router.get("/health/live", response_model=Live)
async def live() -> Live:
    """The process answers."""
    return Live(live=True)


@router.get("/health/ready", response_model=Ready, responses={503: {"model": Ready}})
async def ready(request: Request) -> Response:
    """Requests are answered."""
    is_ready, _ = state(request.app).registry.ready
    return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)


@router.get("", response_model=ServerMetadata, responses=openapi.failures(Failure))
async def server() -> ServerMetadata:
    """The server's name and extensions."""
    return ServerMetadata(
        name="paca", version=__version__, extensions=["binary_tensor_data", "classification"]
    )


@router.get("/models", response_model=Models, responses=openapi.failures(Failure))
async def models(request: Request) -> Models:
    """Every name that answers."""
    names = [status.name for status in state(request.app).registry.models()]
    return Models(models=[name for model in names for name in (model, model + IMAGE)])


@router.get("/models/{name}", response_model=ModelMetadata, responses=openapi.failures(Failure, 404, 503))
@router.get(
    "/models/{name}/versions/{version}",
    response_model=ModelMetadata,
    responses=openapi.failures(Failure, 404, 503),
)
async def metadata(request: Request) -> ModelMetadata:
    """A model's inputs and outputs."""
    app, (name, version) = state(request.app), _named(request)
    predictor, encoded = _find(app, name, version)
    m = predictor.manifest
    height, width = (-1, -1) if m.dynamic_size else m.preprocessing.size
    kind, shape = (
        ("UINT8", [-1, height, width, 3]) if m.input == "uint8" else ("FP32", [-1, 3, height, width])
    )
    return ModelMetadata(
        name=name,
        versions=next(
            list(status.versions) for status in app.registry.models() if status.name == predictor.name
        ),
        platform=PLATFORM,
        inputs=[
            TensorMetadata(name="image", datatype="BYTES", shape=[-1])
            if encoded
            else TensorMetadata(name="image", datatype=kind, shape=shape)
        ],
        outputs=[
            TensorMetadata(
                name=output,
                datatype="FP32",
                shape=[-1, *(size if isinstance(size, int) else -1 for size in sizes[1:])],
            )
            for output, sizes in predictor.outputs.items()
        ],
    )


@router.get("/models/{name}/ready", response_model=ModelReady, responses=openapi.failures(Failure, 404, 503))
@router.get(
    "/models/{name}/versions/{version}/ready",
    response_model=ModelReady,
    responses=openapi.failures(Failure, 404, 503),
)
async def model_ready(request: Request) -> Response:
    """Whether the model answers."""
    app, (name, version) = state(request.app), _named(request)
    _find(app, name, version)
    is_ready, _ = app.registry.ready
    return JSONResponse({"name": name, "ready": is_ready}, 200 if is_ready else 503)


@router.post("/models/{name}/infer", **openapi.inference(InferenceRequest, InferenceResponse, Failure))
@router.post(
    "/models/{name}/versions/{version}/infer",
    **openapi.inference(InferenceRequest, InferenceResponse, Failure),
)
async def infer(request: Request) -> Response:
    """Tensors in, tensors out; as JSON or as raw bytes after the JSON."""
    app, edge = state(request.app), context(request.scope)
    name, version = _named(request)
    app.admission.check(_find(app, name, version)[0].capacity.admitted)
    body = await read_body(request.headers, request.receive, app.max_body)
    edge.bytes_in = len(body)
    asked, tensors = read_request(body, request.headers.get(HEADER))
    predictor, encoded = _find(app, name, version)
    if set(tensors) != {"image"}:
        raise MalformedRequest("the model takes one input, named 'image'")
    image = tensors["image"]
    if isinstance(image, list) != encoded:
        raise MalformedRequest(
            f"{predictor.name} takes pixels, {predictor.name + IMAGE} takes encoded pictures as BYTES"
        )
    most = app.settings.max_images if encoded else MAX_ROWS
    if not 1 <= len(image) <= most:
        raise TooLarge(
            f"{len(image)} pictures in one request; 1 to {most} are taken", limit="batch", value=most
        )
    edge.model, edge.pictures = f"{predictor.name}:{predictor.version}", len(image)
    wanted = (
        asked.outputs
        if asked.outputs is not None
        else [RequestedOutput(name=output) for output in predictor.outputs]
    )
    deadline = time.monotonic() + app.settings.deadline_ms / 1000

    async def work() -> dict[str, np.ndarray]:
        batch = (
            np.stack(await gather(predictor.prepare(item, deadline) for item in image))
            if isinstance(image, list)
            else image
        )
        return await predictor.infer(batch, tuple(output.name for output in wanted), deadline)

    async with app.admission.work(predictor.capacity.admitted, len(image)):
        arrays = await run_until_deadline(work(), request.receive, deadline)
    return _answer(name, predictor, asked, wanted, arrays)


def _answer(
    name: str,
    predictor: Predictor,
    asked: InferenceRequest,
    wanted: list[RequestedOutput],
    arrays: dict[str, np.ndarray],
) -> Response:
    values: dict[str, np.ndarray | list[bytes]] = {}
    outputs = []
    for output in wanted:
        array, best = arrays[output.name], output.parameters.get("classification")
        if best is None:
            values[output.name] = array
            outputs.append(OutputTensor(name=output.name, shape=list(array.shape), datatype="FP32"))
        else:
            values[output.name] = texts = _classes(output.name, array, best, predictor.manifest.labels)
            outputs.append(
                OutputTensor(name=output.name, shape=[len(array), len(texts) // len(array)], datatype="BYTES")
            )
    everything = asked.parameters.get("binary_data_output") is True
    binary = {output.name for output in wanted if output.parameters.get("binary_data", everything) is True}
    response = InferenceResponse(
        model_name=name, model_version=predictor.version, id=asked.id, outputs=outputs
    )
    body, head = write_response(response, values, binary)
    if head is None:
        return Response(body, media_type="application/json")
    return Response(body, media_type="application/octet-stream", headers={HEADER: str(head)})


def _classes(name: str, logits: np.ndarray, best: Any, labels: tuple[str, ...]) -> list[bytes]:
    """The classification extension: each row's best as `value:index:label`."""
    if name != "logits" or not isinstance(best, int) or isinstance(best, bool) or best < 1:
        raise MalformedRequest(
            "`classification` is a parameter of the output logits: how many classes, from 1"
        )
    return [
        f"{row[i]:.6f}:{i}:{labels[i]}".encode()
        for row in logits
        for i in np.argsort(-row, kind="stable")[:best]
    ]


def _named(request: Request) -> tuple[str, str | None]:
    """(model, version or None) of the path."""
    return request.path_params["name"], request.path_params.get("version")


def _find(app: State, name: str, version: str | None) -> tuple[Predictor, bool]:
    """(predictor, whether the name is the one that takes encoded pictures)."""
    loaded = {status.name for status in app.registry.models()}
    encoded = name not in loaded and name.endswith(IMAGE)
    try:
        return app.registry.get(name.removesuffix(IMAGE) if encoded else name, version), encoded
    except UnknownModel:
        raise UnknownModel(
            f"there is no model {name[:80]!r}{' of that version' if version else ''}; GET /v2/models lists "
            "what there is"
        ) from None
