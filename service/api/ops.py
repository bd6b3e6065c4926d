"""What operators ask: is it alive, is it ready, what is loaded, how is it doing."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from ..errors import Draining, NotReady
from ..methods import METHODS, available
from ..predictor import Predictor
from ..registry import ModelStatus
from . import openapi
from .problems import NotFound
from .state import state

router = APIRouter()


class Health(BaseModel):
    status: str = Field(description="`alive` or `ready`.", examples=["ready"])


class Input(BaseModel):
    kind: str = Field(
        description="What the graph takes: uint8 (B, H, W, 3) or float32 (B, 3, H, W).", examples=["uint8"]
    )
    size: tuple[int, int] = Field(description="Height and width in pixels.", examples=[[128, 128]])
    dynamic_size: bool = Field(description="Whether other sizes work too.", examples=[False])
    resize: str = Field(
        description="`stretch` = the whole picture, `shortest` = the shorter side, then the centre.",
        examples=["stretch"],
    )


class Stage(BaseModel):
    stage: int = Field(description="From 1.", examples=[2])
    grid: tuple[int, int] = Field(description="Rows and columns of patches.", examples=[[8, 8]])
    clusters: int = Field(
        description="Clusters the stage computes, 0 where it does not cluster.", examples=[49]
    )


class MethodDetail(BaseModel):
    """A way of explaining, for people."""

    model_config = ConfigDict(from_attributes=True)

    name: str = Field(description="What `method=` takes.", examples=["cam"])
    label: str = Field(description="Its name on the page.", examples=["CAM"])
    title: str = Field(description="What it shows.", examples=["What each patch adds"])
    note: str = Field(
        description="How to read it.", examples=["Each number is what one patch adds to the logit."]
    )


class ModelInfo(BaseModel):
    name: str = Field(description="What `?model=` takes.", examples=["imagenette"])
    version: str = Field(description="The version described here: the newest.", examples=["1"])
    versions: list[str] = Field(description="All loaded versions, oldest first.", examples=[["1"]])
    default: bool = Field(description="Whether it answers when no model is named.", examples=[True])
    variant: str = Field(description="The architecture.", examples=["pacavit_tiny_p2cconv_100_0"])
    provider: str = Field(description="The execution provider really in use.", examples=["cpu"])
    precision: str = Field(description="fp32, fp16 or int8.", examples=["fp32"])
    sha256: str = Field(description="Of the model file.", examples=["9f86d081884c7d65"])
    input: Input
    stages: list[Stage]
    methods: list[str] = Field(
        description="Ways of explaining that this model offers, the default first.",
        examples=[list(METHODS)],
    )
    method_details: list[MethodDetail] = Field(description="The same, for people, in the same order.")
    parameters: int = Field(description="Number of weights.", examples=[1_000_000])
    labels: list[str] = Field(
        description="Class names; the position is the class id.", examples=[["tench", "golf ball"]]
    )
    accuracy: dict[str, Any] = Field(description="Measured figures, where known.")


class ModelList(BaseModel):
    models: list[ModelInfo]


@router.get("/healthz", tags=["Operations"], response_model=Health)
async def alive() -> Response:
    """The process answers. Says nothing about models."""
    return Response(b'{"status":"alive"}', media_type="application/json")


@router.get("/readyz", tags=["Operations"], response_model=Health, responses=openapi.errors(503))
async def ready(request: Request) -> Response:
    """Whether requests are answered: 200 after loading, self-test and warm-up; 503 with the reason before,
    and from the first moment of a shutdown."""
    registry = state(request.app).registry
    is_ready, reason = registry.ready
    if not is_ready:
        raise (Draining if registry.draining else NotReady)(reason)
    return Response(b'{"status":"ready"}', media_type="application/json")


@router.get("/models", tags=["Models"], response_model=ModelList, responses=openapi.errors())
async def models(request: Request) -> ModelList:
    """Everything that is loaded."""
    registry = state(request.app).registry
    return ModelList(models=[describe(status, registry.default_model) for status in registry.models()])


@router.get("/models/{name}", tags=["Models"], response_model=ModelInfo, responses=openapi.errors(404, 503))
async def model(request: Request) -> ModelInfo:
    """One model."""
    registry, name = state(request.app).registry, request.path_params["name"]
    registry.get(name)  # says what there is
    return next(
        describe(status, registry.default_model) for status in registry.models() if status.name == name
    )


@router.get("/metrics", tags=["Operations"], responses=openapi.text() | openapi.errors(404))
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    app = state(request.app)
    if not app.settings.metrics:
        raise NotFound("metrics are switched off (PACA_METRICS)")
    app.metrics.refresh(app.registry)
    text, content_type = app.metrics.render()
    return Response(text, media_type=content_type)


def describe(status: ModelStatus, default: str | None) -> ModelInfo:
    predictor: Predictor = status.predictor
    m, methods = predictor.manifest, available(predictor.offers)
    return ModelInfo(
        name=status.name,
        version=predictor.version,
        versions=list(status.versions),
        default=status.name == default,
        variant=m.variant,
        provider=predictor.provider,
        precision=predictor.precision,
        sha256=predictor.sha256,
        input=Input(
            kind=m.input,
            size=m.preprocessing.size,
            dynamic_size=m.dynamic_size,
            resize=m.preprocessing.resize,
        ),
        stages=[Stage(stage=s.stage, grid=s.grid, clusters=s.clusters) for s in m.stages],
        methods=[method.name for method in methods],
        method_details=[MethodDetail.model_validate(method) for method in methods],
        parameters=m.parameters,
        labels=list(m.labels),
        accuracy=m.accuracy,
    )
