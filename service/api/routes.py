"""POST /classify, /explain and /segment: read the upload, call the data plane, shape what comes back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from ..errors import MalformedRequest, PacaError
from ..options import ClassifyOptions, ExplainOptions, SegmentOptions
from ..plan import class_id
from ..report import report_pieces
from ..results import Classification, ExplainResult, Explanation, Picture, Result
from . import openapi, schemas
from .context import context
from .negotiate import choose
from .parameters import Options, parse, parse_query
from .problems import NotAcceptable, NotFound, problem
from .schemas import Problem, Wire
from .serialise import in_pieces, off_loop
from .state import state
from .uploads import Upload, disconnected, load_json, read_body, unpack

router = APIRouter()
JSON = "application/json"
HTML = "text/html"
MAX_FEEDBACK_BYTES, MAX_FEEDBACK_VALUES = 4096, 8
REPORT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
MAP, OVERLAY = "image/png", "image/webp"  # of /segment
PICTURES = {"image/webp": "webp", "image/png": "png", "image/jpeg": "jpeg"}
R = TypeVar("R", bound=Result)


@router.post("/classify", **openapi.job(ClassifyOptions, schemas.ClassifyResponse, schemas.SeveralClassified))
async def classify(request: Request) -> Response:
    """The most probable classes of one or more photos."""
    choose(request.headers.get("accept"), (JSON,))
    upload, options = await _read(request, ClassifyOptions, "classify")
    results = await state(request.app).plane.classify(upload.pictures, options, context(request.scope))
    _note(request, upload, results)
    pieces = _json(request, upload, results, schemas.classified)
    return Response(b"".join(pieces), media_type=JSON)  # at most 16 pictures with 1,000 short lines each


@router.post(
    "/explain",
    **openapi.job(ExplainOptions, schemas.ExplainResponse, schemas.SeveralExplained, (HTML, *PICTURES)),
)
async def explain(request: Request) -> Response:
    """Predictions, and why: heatmaps, masks and clusters with their share of the evidence."""
    accept = request.headers.get("accept")
    choose(accept, (JSON, HTML, *PICTURES))
    upload, options = await _read(request, ExplainOptions, "explain")
    media = choose(accept, (JSON, HTML, *_picture_types(options)))
    _check_form(upload, media)
    if media in PICTURES:
        render = options.render if "render" in options.model_fields_set else ("overlay",)
        options = options.model_copy(update={"format": PICTURES[media], "render": render})
    results = await state(request.app).plane.explain(upload.pictures, options, context(request.scope))
    _note(request, upload, results)
    if media in PICTURES:
        return _picture(_single(results))
    if media == HTML:
        page = (piece.encode() for piece in report_pieces(_single(results), colormap=options.colormap))
        return await in_pieces(page, HTML, {"Content-Security-Policy": REPORT_POLICY})
    shape = partial(schemas.explained, arrays=options.arrays)
    return await in_pieces(_json(request, upload, results, shape), JSON)


@router.post(
    "/segment",
    **openapi.job(SegmentOptions, schemas.SegmentResponse, schemas.SeveralSegmented, (MAP, OVERLAY)),
)
async def segment(request: Request) -> Response:
    """The class of every pixel: a label map, and each class's area, box and score. As image/png the map
    itself, as image/webp the overlay."""
    media = choose(request.headers.get("accept"), (JSON, MAP, OVERLAY))
    upload, options = await _read(request, SegmentOptions, "segment")
    _check_form(upload, media)
    if media == OVERLAY:
        options = options.model_copy(update={"render": ("overlay",)})
    results = await state(request.app).plane.segment(upload.pictures, options, context(request.scope))
    if media == MAP:
        return Response(_single(results).map.data, media_type=MAP)
    if media == OVERLAY:
        return Response(_single(results).images["overlay"].data, media_type=OVERLAY)
    return await in_pieces(_json(request, upload, results, schemas.segmented), JSON)


class Feedback(BaseModel):
    """What a picture really shows, as its user says."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(min_length=1, max_length=200, description="The answer's id.", examples=["5f0c9a"])
    label: str = Field(min_length=1, max_length=200, description="A class of the model.", examples=["church"])


@router.post("/feedback", **openapi.feedback(Feedback))
async def feedback(request: Request) -> Response:
    """Appends to the answer log what a picture really shows. The id is not looked up."""
    app, call = state(request.app), context(request.scope)
    if app.answers is None:
        raise NotFound("this server keeps no answers (PACA_ANSWER_LOG)")
    model = parse_query(request.scope["query_string"]).get("model", [None])[0]
    predictor = app.plane.select(model)
    body = await read_body(request.headers, request.receive, MAX_FEEDBACK_BYTES)
    call.bytes_in = len(body)
    try:
        said = Feedback.model_validate(load_json(body, MAX_FEEDBACK_VALUES))
    except ValidationError:
        raise MalformedRequest('feedback is JSON like {"id": "5f0c9a", "label": "church"}') from None
    label = predictor.manifest.labels[class_id(said.label, predictor.manifest.labels)]
    app.answers.feedback(said.id, predictor.name, label)
    return Response(status_code=204)


def _note(request: Request, upload: Upload, results: Sequence[Classification | PacaError]) -> None:
    """Into the answer log, where there is one: each picture's result."""
    answers, request_id = state(request.app).answers, context(request.scope).request_id
    if answers is None:
        return
    for i, (picture, result) in enumerate(zip(upload.pictures, results, strict=True)):
        if isinstance(picture, bytes) and not isinstance(result, PacaError):
            answers.answered(f"{request_id}-{i}" if upload.several else request_id, picture, result)


def _check_form(upload: Upload, media: str) -> None:
    if upload.several and media != JSON:
        raise NotAcceptable(
            "several pictures are answered as JSON only; send one, or accept application/json"
        )


def _picture_types(options: ExplainOptions) -> list[str]:
    """The media types of pictures that the request leaves open."""
    is_open = "format" not in options.model_fields_set
    return [media for media, name in PICTURES.items() if is_open or name == options.format]


async def _read(request: Request, kind: type[Options], job: str) -> tuple[Upload, Options]:
    """What the request for a job holds. Refuses what can be refused before a byte of the body is read."""
    app, call = state(request.app), context(request.scope)
    query = parse_query(request.scope["query_string"])
    app.plane.select(query.get("model", [None])[0], job)
    body = await read_body(request.headers, request.receive, app.max_body)
    call.bytes_in = len(body)
    content_type, most = request.headers.get("content-type", ""), app.settings.max_images
    upload = await off_loop(len(body), unpack, body, content_type, most)
    options = parse(kind, query, upload.texts, values=upload.values)
    call.deadline = time.monotonic() + app.settings.deadline_ms / 1000
    call.gone = lambda: disconnected(request.receive)
    return upload, options


def _single(results: Sequence[R | PacaError]) -> R:
    if isinstance(results[0], PacaError):
        raise results[0]
    return results[0]


def _json(
    request: Request,
    upload: Upload,
    results: Sequence[R | PacaError],
    shape: Callable[[R, str], Wire],
) -> Iterator[bytes]:
    """One picture's response, or `results` with a response or a problem for each, in order."""
    request_id = context(request.scope).request_id
    if not upload.several:
        yield from shape(_single(results), request_id).pieces()
        return
    yield b'{"results":['
    for i, result in enumerate(results):
        name = f"{request_id}-{i}"
        yield b"," if i else b""
        if isinstance(result, PacaError):
            yield Problem(**problem(result, name)).model_dump_json().encode()
        else:
            yield from shape(result, name).pieces()
    yield b"]}"


def _overlays(explanation: Explanation) -> Iterator[Picture]:
    """Of its clusters and its parts."""
    yield from (cluster.overlay for cluster in explanation.clusters if cluster.overlay)
    yield from (part.overlay for part in explanation.parts if part.overlay)


def _picture(result: ExplainResult) -> Response:
    """The first picture of the first explanation."""
    for explanation in result.explanations:
        for picture in (*explanation.images.values(), *_overlays(explanation)):
            return Response(picture.data, media_type=picture.mime)
    raise NotAcceptable(
        "this explanation has no picture to answer with; ask for one with `render`, or accept "
        "application/json"
    )
