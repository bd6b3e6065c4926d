"""Open Inference Protocol v2 (KServe, Triton): the model's graph as it is, and a second name `<model>-image`
whose input is encoded photos.

Cluster assignments and tokens are ordinary outputs, so any client of the protocol can explain. Only the
outputs requested are computed. Models are never loaded or unloaded from here.
"""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from .. import __version__
from . import openapi
from .context import context
from .serialise import PiecewiseResponse, off_loop
from .state import state
from .tensors import (
    InferenceRequest,
    InferenceResponse,
    RequestedOutput,
    binary_outputs,
    check_json_size,
    infer_request,
    read_request,
    write_response,
)
from .uploads import disconnected, read_body

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])
HEADER = "Inference-Header-Content-Length"
PLATFORM = "onnx_onnxv1"
EXTENSIONS = ("binary_tensor_data", "classification")


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
    is_ready, _ = state(request.app).plane.ready
    return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)


@router.get("", response_model=ServerMetadata, responses=openapi.failures(Failure))
async def server() -> ServerMetadata:
    """The server's name and extensions."""
    return ServerMetadata(name="paca", version=__version__, extensions=list(EXTENSIONS))


@router.get("/models", response_model=Models, responses=openapi.failures(Failure))
async def models(request: Request) -> Models:
    """Every name that answers."""
    return Models(models=state(request.app).plane.names())


@router.get("/models/{name}", response_model=ModelMetadata, responses=openapi.failures(Failure, 404, 503))
@router.get(
    "/models/{name}/versions/{version}",
    response_model=ModelMetadata,
    responses=openapi.failures(Failure, 404, 503),
)
async def metadata(request: Request) -> ModelMetadata:
    """A model's inputs and outputs."""
    found = state(request.app).plane.metadata(*_named(request))
    return ModelMetadata(
        name=found.name,
        versions=list(found.versions),
        platform=PLATFORM,
        inputs=[TensorMetadata(**vars(spec)) for spec in found.inputs],
        outputs=[TensorMetadata(**vars(spec)) for spec in found.outputs],
    )


@router.get("/models/{name}/ready", response_model=ModelReady, responses=openapi.failures(Failure, 404, 503))
@router.get(
    "/models/{name}/versions/{version}/ready",
    response_model=ModelReady,
    responses=openapi.failures(Failure, 404, 503),
)
async def model_ready(request: Request) -> Response:
    """Whether the model answers."""
    plane, (name, version) = state(request.app).plane, _named(request)
    plane.find(name, version)
    is_ready, _ = plane.ready
    return JSONResponse({"name": name, "ready": is_ready}, 200 if is_ready else 503)


@router.post("/models/{name}/infer", **openapi.inference(InferenceRequest, InferenceResponse, Failure))
@router.post(
    "/models/{name}/versions/{version}/infer",
    **openapi.inference(InferenceRequest, InferenceResponse, Failure),
)
async def infer(request: Request) -> Response:
    """Tensors in, tensors out; as JSON or as raw bytes after the JSON."""
    app, call = state(request.app), context(request.scope)
    name, version = _named(request)
    predictor, _ = app.plane.find(name, version)
    app.plane.check_room(predictor)
    body = await read_body(request.headers, request.receive, app.max_body)
    call.bytes_in = len(body)
    wire, tensors = await off_loop(len(body), read_request, body, request.headers.get(HEADER))
    job = infer_request(name, version, wire, tensors)
    requested = wire.outputs
    if requested is None:
        requested = [RequestedOutput(name=output) for output in predictor.outputs]
    binary = binary_outputs(wire, requested)
    sizes = [predictor.outputs.get(o.name, []) for o in requested if o.name not in binary]
    check_json_size(job.pictures, sizes)
    call.deadline = time.monotonic() + app.settings.deadline_ms / 1000
    call.gone = lambda: disconnected(request.receive)
    result = await app.plane.infer(job, call)
    size = sum(8 * len(v) if isinstance(v, list) else v.nbytes for v in result.outputs.values())
    pieces, head = await off_loop(size, write_response, name, wire.id, result, binary)
    if head is None:
        return PiecewiseResponse(pieces, "application/json")
    return PiecewiseResponse(pieces, "application/octet-stream", {HEADER: str(head)})


def _named(request: Request) -> tuple[str, str | None]:
    """(model, version or None) of the path."""
    return request.path_params["name"], request.path_params.get("version")
