"""POST /classify and POST /explain: read the upload, ask the predictor for each picture, shape the answer."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from ..errors import PacaError, Unavailable
from ..predictor import Predictor, gather
from ..report import render_report
from ..results import Classification, ExplainResult
from . import openapi, schemas
from .admission import run_until_deadline
from .context import Context, context
from .negotiate import choose
from .parameters import ClassifyParameters, ExplainParameters, Parameters, parse, parse_query
from .problems import NotAcceptable, problem
from .schemas import Problem, Wire
from .state import State, state
from .uploads import Upload, read_body, unpack

router = APIRouter()
JSON = "application/json"
HTML = "text/html"
REPORT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
FORMATS = {"image/webp": "webp", "image/png": "png", "image/jpeg": "jpeg"}
Result = TypeVar("Result", bound=Classification)


@router.post(
    "/classify", **openapi.job(ClassifyParameters, schemas.ClassifyResponse, schemas.SeveralClassified)
)
async def classify(request: Request) -> Response:
    """The most probable classes of one or more photos."""
    edge = context(request.scope)
    choose(request.headers.get("accept"), (JSON,))
    upload, parameters, predictor = await _asked(request, ClassifyParameters)
    options = parameters.options(predictor.manifest.labels)
    predictor.check_options(options)
    answers = await _work(
        request, upload, predictor, lambda data, deadline: predictor.classify(data, options, deadline)
    )
    return _json(edge, upload, answers, schemas.classified)


@router.post(
    "/explain",
    **openapi.job(ExplainParameters, schemas.ExplainResponse, schemas.SeveralExplained, (HTML, *FORMATS)),
)
async def explain(request: Request) -> Response:
    """Predictions, and why: heatmaps, masks and clusters with their share of the evidence."""
    edge = context(request.scope)
    accept = request.headers.get("accept")
    choose(accept, (JSON, HTML, *FORMATS))
    upload, parameters, predictor = await _asked(request, ExplainParameters)
    given = parameters.model_fields_set
    media = choose(
        accept,
        (JSON, HTML, *(m for m, f in FORMATS.items() if f == parameters.format or "format" not in given)),
    )
    if upload.several and media != JSON:
        raise NotAcceptable(
            "several pictures are answered as JSON only; send one, or accept application/json"
        )
    if media in FORMATS:
        wishes = {"format": FORMATS[media]} | ({} if "render" in given else {"render": ["overlay"]})
        parameters = parameters.model_copy(update=wishes)
    options = parameters.options(predictor.manifest.labels)
    predictor.check_options(options)
    answers = await _work(
        request, upload, predictor, lambda data, deadline: predictor.explain(data, options, deadline)
    )
    if media in FORMATS:
        return _picture(_single(answers))
    if media == HTML:
        return HTMLResponse(
            render_report(_single(answers)), headers={"Content-Security-Policy": REPORT_POLICY}
        )
    return _json(edge, upload, answers, lambda result, name: schemas.explained(result, name, options.arrays))


async def _asked(request: Request, kind: type[Parameters]) -> tuple[Upload, Parameters, Predictor]:
    """What the request holds. Refuses what can be refused before a byte of the body is read."""
    app = state(request.app)
    query = parse_query(request.scope["query_string"])
    app.admission.check(_model(app, query.get("model", [None])[0]).capacity.admitted)
    body = await read_body(request.headers, request.receive, app.max_body)
    context(request.scope).bytes_in = len(body)
    upload = unpack(body, request.headers.get("content-type", ""), app.settings.max_images)
    parameters = parse(kind, query, upload.texts, values=upload.values)
    return upload, parameters, _model(app, parameters.model)


def _model(app: State, wanted: str | None) -> Predictor:
    name, _, version = (wanted or "").partition(":")
    return app.registry.get(name or None, version or None)


async def _work(
    request: Request, upload: Upload, predictor: Predictor, ask: Callable[[bytes, float], Awaitable[Result]]
) -> list[Result | PacaError]:
    """One answer or error for each picture, in order, worked on side by side."""
    app, edge = state(request.app), context(request.scope)
    deadline = time.monotonic() + app.settings.deadline_ms / 1000
    edge.model, edge.pictures = f"{predictor.name}:{predictor.version}", len(upload.pictures)

    async def answer(picture: bytes | PacaError) -> Result | PacaError:
        if isinstance(picture, PacaError):
            return picture
        try:
            return await ask(picture, deadline)
        except PacaError as error:
            return error

    async def answer_all() -> list[Result | PacaError]:
        if len(upload.pictures) == 1:
            return [await answer(upload.pictures[0])]
        return await gather(map(answer, upload.pictures))

    async with app.admission.work(predictor.capacity.admitted, len(upload.pictures)):
        answers = await run_until_deadline(answer_all(), request.receive, deadline)
    for result in answers:
        if not isinstance(result, PacaError):
            edge.timings.append(result.timings)
            app.metrics.picture(predictor.name, result.timings)
    if len(answers) > 1 and all(isinstance(result, Unavailable) for result in answers):
        _single(answers)  # nothing was done: the request as a whole may be sent again
    return answers


def _single(answers: list[Result | PacaError]) -> Result:
    if isinstance(answers[0], PacaError):
        raise answers[0]
    return answers[0]


def _json(
    edge: Context, upload: Upload, answers: list[Result | PacaError], shape: Callable[[Result, str], Wire]
) -> Response:
    if not upload.several:
        return Response(shape(_single(answers), edge.request_id).to_json(), media_type=JSON)
    items = []
    for i, result in enumerate(answers):
        name = f"{edge.request_id}-{i}"
        items.append(
            Problem(**problem(result, name)).model_dump_json().encode()
            if isinstance(result, PacaError)
            else shape(result, name).to_json()
        )
    return Response(b'{"results":[' + b",".join(items) + b"]}", media_type=JSON)


def _picture(result: ExplainResult) -> Response:
    """The first picture of the first explanation."""
    for explanation in result.explanations:
        for found in (*explanation.images.values(), *(c.overlay for c in explanation.clusters if c.overlay)):
            return Response(found.data, media_type=found.mime)
    raise NotAcceptable(
        "this explanation has no picture to answer with; ask for one with `render`, or accept "
        "application/json"
    )
