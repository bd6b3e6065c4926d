"""What operators ask: is it alive, is it ready, what is loaded, how is it doing."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from .. import __version__
from ..errors import DeviceLost, Draining, NotReady
from ..methods import METHODS, available
from ..predictor import Predictor
from ..providers import PROVIDERS
from ..registry import ModelStatus, Registry
from ..version import this_build
from . import openapi
from .problems import NotFound
from .state import state

router = APIRouter()


class Health(BaseModel):
    status: str = Field(description="`alive`.", examples=["alive"])


class Failed(BaseModel):
    """A version that could not be loaded; what answered before it still does."""

    model_config = ConfigDict(from_attributes=True)

    name: str = Field(description="The model.", examples=["imagenette"])
    version: str = Field(description="Its version.", examples=["2"])
    kind: str = Field(
        description="`bad-artifact`: its files are at fault; else memory, a device or the configuration.",
        examples=["bad-artifact"],
    )
    message: str = Field(description="What is wrong.", examples=["model.onnx is not an ONNX file"])
    failing_seconds: float = Field(description="Seconds since it first failed.", examples=[12.5])
    retry_in_seconds: float | None = Field(
        description="Seconds until it is tried again; null = once a file of it changes.", examples=[None]
    )


class Loading(BaseModel):
    name: str = Field(description="The model.", examples=["imagenette"])
    version: str = Field(description="Its version.", examples=["2"])


class NotLoaded(BaseModel):
    failed: list[Failed] = Field(description="Versions that could not be loaded.")
    loading: list[Loading] = Field(description="Versions that are there but were not tried yet.")


class Readiness(NotLoaded):
    status: str = Field(description="`ready`.", examples=["ready"])


class Version(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    version: str = Field(description="Of this program.", examples=[__version__])
    commit: str | None = Field(description="Of its repository, where known.", examples=[None])
    onnxruntime: str | None = Field(description="Version of ONNX Runtime.", examples=["1.31.0"])
    providers: list[str] = Field(
        description="Execution providers that this ONNX Runtime has, the preferred first.",
        examples=[[provider.ort_name for provider in PROVIDERS.values()]],
    )


class Input(BaseModel):
    kind: str = Field(
        description="What the graph takes: uint8 (B, H, W, 3) or float32 (B, 3, H, W).", examples=["uint8"]
    )
    size: tuple[int, int] = Field(description="Height and width in pixels.", examples=[[128, 128]])
    dynamic_size: bool = Field(description="Whether other sizes work too.", examples=[False])
    resize: str = Field(
        description="`stretch` = the whole picture, `shortest` = the shorter side, then the centre, `aspect` "
        "= the "
        "whole picture in proportion.",
        examples=["stretch"],
    )


class Stage(BaseModel):
    stage: int = Field(description="From 1.", examples=[2])
    grid: tuple[int, int] = Field(description="Rows and columns of patches.", examples=[[8, 8]])
    clusters: int = Field(
        description="Clusters the stage computes, 0 where it does not cluster.", examples=[49]
    )


class NoveltyInfo(BaseModel):
    """What `novelty` in a response is made of, and what it is worth."""

    method: str = Field(description="What is added up.", examples=["energy and a linear probe"])
    references: int = Field(description="Held-out known pictures that it is compared with.", examples=[909])
    measured: dict[str, float] = Field(
        description="What was measured at a threshold of 0.95: `flagged_foreign`, the share of "
        "`foreign_pictures` of kinds that no fit saw that is called novel (the catch rate), and "
        "`auroc_foreign`; `flagged_drawings`, the same of drawn textures, plain colours and screens.",
        examples=[{"flagged_foreign": 0.45, "auroc_foreign": 0.89, "foreign_pictures": 2000}],
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
    task: str = Field(
        description="What it is for: classification or segmentation.", examples=["classification"]
    )
    jobs: list[str] = Field(
        description="The paths that answer with it, without the slash.", examples=[["classify", "explain"]]
    )
    palette: list[tuple[int, int, int]] = Field(
        [], description="Of a model that segments: each class's colour as red, green, blue."
    )
    variant: str = Field(description="The architecture.", examples=["pacavit_tiny_p2cconv_100_0"])
    provider: str = Field(description="The execution provider really in use.", examples=["cpu"])
    precision: str = Field(description="fp32, fp16 or int8.", examples=["int8"])
    precision_reason: str = Field(
        description="Why this precision runs.",
        examples=["not int8: this processor has no 8-bit dot products (VNNI, AMX or Arm dotprod)"],
    )
    sha256: str = Field(
        description="Of the model file.",
        examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
    )
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
    novelty: NoveltyInfo | None = Field(None, description="Only where the model has statistics for it.")


class ModelList(NotLoaded):
    models: list[ModelInfo]


@router.get("/healthz", tags=["Operations"], response_model=Health)
async def alive() -> Response:
    """The process answers. Says nothing about models."""
    return Response(b'{"status":"alive"}', media_type="application/json")


@router.get("/readyz", tags=["Operations"], response_model=Readiness, responses=openapi.errors(503))
async def ready(request: Request) -> Readiness:
    """Whether requests are answered: 200 once the default model (or, where none is set, any) is loaded,
    self-tested and warm; 503 with the reason before, from the first moment of a shutdown, and after a device
    has failed for good."""
    registry = state(request.app).registry
    is_ready, reason = registry.ready
    if not is_ready:
        kind = DeviceLost if registry.lost else Draining if registry.draining else NotReady
        raise kind(reason)
    return Readiness(status="ready", **_not_loaded(registry))


@router.get("/version", tags=["Operations"], response_model=Version, responses=openapi.errors())
async def version() -> Version:
    """What runs here."""
    return Version.model_validate(this_build())


@router.get("/models", tags=["Models"], response_model=ModelList, responses=openapi.errors())
async def models(request: Request) -> ModelList:
    """What is loaded, and what is there but could not be loaded or is not loaded yet."""
    registry = state(request.app).registry
    loaded = [describe(status, registry.default_model) for status in registry.models()]
    return ModelList(models=loaded, **_not_loaded(registry))


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
    app.metrics.refresh(app.registry, app.answers)
    text, content_type = app.metrics.render()
    return Response(text, media_type=content_type)


def _not_loaded(registry: Registry) -> dict[str, Any]:
    return {
        "failed": [Failed.model_validate(failure) for failure in registry.failures()],
        "loading": [Loading(name=name, version=version) for name, version in registry.loading],
    }


def describe(status: ModelStatus, default: str | None) -> ModelInfo:
    predictor: Predictor = status.predictor
    m, novelty = predictor.manifest, predictor.novelty
    methods = available(predictor.offers) if "explain" in m.purpose.jobs else []
    return ModelInfo(
        name=status.name,
        version=predictor.version,
        versions=list(status.versions),
        default=status.name == default,
        task=m.task,
        jobs=list(m.purpose.jobs),
        palette=list(m.palette),
        variant=m.variant,
        provider=predictor.provider,
        precision=predictor.precision,
        precision_reason=predictor.precision_reason,
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
        novelty=None if novelty is None else NoveltyInfo(**novelty.facts),
    )
