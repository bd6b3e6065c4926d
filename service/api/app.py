"""`create_app`: the ASGI application, whole. Runs under our `server`, under any other ASGI server, and inside
Ray Serve."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from .. import __version__
from ..dataplane import DataPlane
from ..registry import Registry
from ..settings import Settings
from ..wiring import build_registry
from . import oip, openapi, ops, pages, problems, routes, rpc
from .answer_log import AnswerLog
from .keys import ApiKeys
from .metrics import Metrics
from .middleware import RequestMiddleware
from .state import State, state
from .tensors import InferenceRequest
from .tracing import tracing

log = logging.getLogger("paca.api")
PARTS = (routes, oip, ops)


def create_app(settings: Settings | None = None, registry: Registry | None = None) -> FastAPI:
    """The app. It answers at once: /readyz says 503 until the registry has loaded, and 200 from then on."""
    settings = settings or Settings()
    metrics = Metrics(*_endpoints(settings))
    keys = ApiKeys(settings.api_keys) if settings.api_keys else None
    registry = registry or build_registry(settings)
    spans = tracing() if settings.otel else None
    middleware = [
        Middleware(
            RequestMiddleware,
            metrics,
            root_path=settings.root_path,
            is_draining=lambda: registry.draining,
            keys=keys,
            annotate=spans.annotate if spans else None,
        )
    ]
    if settings.cors_origins:
        middleware.insert(0, _cors(settings.cors_origins))
    if spans:
        middleware.insert(0, spans.middleware)
    app = FastAPI(
        title="PaCa",
        version=__version__,
        lifespan=_lifespan,
        middleware=middleware,
        redirect_slashes=False,
        generate_unique_id_function=openapi.operation_id,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json" if settings.docs else None,
    )
    plane = DataPlane(registry, max_images=settings.max_images, observe=metrics.picture)
    answers = AnswerLog(settings.answer_log) if settings.answer_log else None
    app.state.paca = State(settings, registry, metrics, keys, plane, spans, answers)
    problems.install(app)
    openapi.install(app, (InferenceRequest, routes.Feedback))
    for part in PARTS:
        app.include_router(part.router)
    if settings.docs:
        pages.install_docs(app)
    if settings.demo:
        pages.install_demo(app)
    return app


def _cors(origins: list[str]) -> Middleware:
    return Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type", "X-API-Key", "X-Request-ID", "traceparent"],
        expose_headers=["X-Request-ID", "Server-Timing", "Retry-After"],
    )


def _endpoints(settings: Settings) -> tuple[list[str], list[str]]:
    """The paths of the routes, and the methods of gRPC where it is on: those that do work, and those that
    only tell something."""
    routed = [route for part in PARTS for route in part.router.routes if isinstance(route, APIRoute)]
    jobs = [route.path for route in routed if "POST" in (route.methods or ())]
    tell = [route.path for route in routed if route.path not in jobs]
    return ([*jobs, *rpc.JOBS], [*tell, *rpc.LOOKUPS]) if settings.grpc_port else (jobs, tell)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Loads in the background, so that the process says why it is not ready instead of refusing
    connections."""
    shared = state(app)

    async def start() -> None:
        try:
            await shared.registry.start()
        except Exception as error:  # whatever it is, the server ends with it and says so
            shared.failure = error
            log.error("cannot start: %s", error)

    async def watch() -> None:
        while True:
            shared.metrics.refresh(shared.registry, shared.answers)
            await asyncio.sleep(1)

    tasks = [asyncio.create_task(start()), asyncio.create_task(watch())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            await shared.registry.close()
        finally:
            if shared.answers:
                await asyncio.to_thread(shared.answers.close)
            if shared.tracing:
                await asyncio.to_thread(shared.tracing.close)
