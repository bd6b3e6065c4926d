"""Errors on the wire: one table from error to the status of HTTP and of gRPC. HTTP answers RFC 9457
problem+json, or `{"error": …}` on Open Inference Protocol paths.

The core raises `errors.PacaError` and knows no status; errors that only HTTP can have (a path, an `Accept`
header, a slow upload) stand here.
"""

from __future__ import annotations

import logging
import math
from http import HTTPStatus
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from .. import errors
from ..errors import InvalidInput, PacaError

log = logging.getLogger("paca.api")
MEDIA_TYPE = "application/problem+json"


class NotFound(InvalidInput): ...


class MethodNotAllowed(InvalidInput): ...


class NotAcceptable(InvalidInput): ...


class Unauthorized(InvalidInput): ...


class SlowUpload(InvalidInput): ...


class HeadersTooLarge(InvalidInput): ...


class AddressTooLong(InvalidInput): ...


class Row(NamedTuple):
    """How an error is answered: the status and title of HTTP, the status code of gRPC."""

    status: int
    title: str
    rpc: str


STATUS: dict[type[PacaError], Row] = {
    errors.MalformedRequest: Row(400, "Malformed request", "INVALID_ARGUMENT"),
    Unauthorized: Row(401, "API key needed", "UNAUTHENTICATED"),
    errors.UnknownModel: Row(404, "Unknown model", "NOT_FOUND"),
    NotFound: Row(404, "Nothing here", "NOT_FOUND"),
    MethodNotAllowed: Row(405, "Method not allowed", "UNIMPLEMENTED"),
    NotAcceptable: Row(406, "Nothing acceptable to answer with", "INVALID_ARGUMENT"),
    SlowUpload: Row(408, "Upload too slow", "DEADLINE_EXCEEDED"),
    errors.TooLarge: Row(413, "Too large", "INVALID_ARGUMENT"),
    AddressTooLong: Row(414, "Address too long", "INVALID_ARGUMENT"),
    errors.NotAnImage: Row(415, "Not an accepted image format", "INVALID_ARGUMENT"),
    errors.BadImage: Row(422, "Image cannot be decoded", "INVALID_ARGUMENT"),
    errors.BadParameter: Row(422, "Bad parameter", "INVALID_ARGUMENT"),
    HeadersTooLarge: Row(431, "Headers too large", "INVALID_ARGUMENT"),
    errors.ClientGone: Row(499, "Client closed the connection", "CANCELLED"),
    errors.Overloaded: Row(503, "Overloaded", "RESOURCE_EXHAUSTED"),
    errors.Draining: Row(503, "Shutting down", "UNAVAILABLE"),
    errors.NotReady: Row(503, "Not ready", "UNAVAILABLE"),
    errors.EngineFailure: Row(503, "Inference failed", "UNAVAILABLE"),
    errors.DeviceLost: Row(503, "Device lost", "UNAVAILABLE"),
    errors.DeadlineExceeded: Row(504, "Deadline passed", "DEADLINE_EXCEEDED"),
}
UNFORESEEN = Row(500, "Internal error", "INTERNAL")


def row_of(error: Exception) -> Row:
    """The row of an error; an error nobody foresaw is a bug and says 500."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), UNFORESEEN)


def kind_of(error: Exception) -> str:
    """The stable name of an error: what `type` ends with, and the reason in the metrics."""
    name = next((kind.__name__ for kind in type(error).__mro__ if kind in STATUS), "InternalError")
    return errors.kind_name(name)


def problem(error: Exception, request_id: str) -> dict[str, Any]:
    """The RFC 9457 object of an error. Only a PacaError's message is for users; any other error says nothing
    about itself."""
    status, title, _ = row_of(error)
    detail = "the server met an error it did not foresee; the log has it under this request_id"
    extras: dict[str, object] = {}
    if isinstance(error, PacaError) and status != UNFORESEEN.status:
        detail = error.message
        extras = {
            name: value for name, value in error.details.items() if isinstance(value, str | int | float)
        }
    return {
        "type": f"urn:paca:problem:{kind_of(error)}",
        "title": title,
        "status": status,
        "detail": detail,
        "request_id": request_id,
        **extras,
    }


def headers_of(error: Exception) -> dict[str, str]:
    """Retry-After where waiting helps, WWW-Authenticate where a key does, Allow where another method does."""
    if isinstance(error, errors.Unavailable):
        return {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": 'Bearer realm="paca", Basic realm="paca", charset="UTF-8"'}
    if isinstance(error, MethodNotAllowed):
        return {"Allow": str(error.details.get("allowed", ""))}
    return {}


def response(error: Exception, scope: Scope) -> Response:
    """The answer to a request that failed."""
    context = scope.get("paca")
    body = problem(error, context.request_id if context else "")
    if context:
        context.error = error
    if scope["path"].removeprefix(scope.get("root_path", "")).startswith("/v2"):
        return JSONResponse({"error": body["detail"]}, body["status"], headers_of(error))
    return JSONResponse(body, body["status"], headers_of(error), media_type=MEDIA_TYPE)


def from_http(error: HTTPException) -> PacaError:
    """The router's own refusals as ours."""
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "")
        return MethodNotAllowed(f"this path answers {allowed or 'other methods'} only", allowed=allowed)
    if error.status_code == HTTPStatus.NOT_FOUND:
        return NotFound("there is nothing at this path; /docs lists what there is")
    return errors.MalformedRequest("the request cannot be understood")


def install(app: FastAPI) -> None:
    """Makes every refusal of the app a problem."""

    async def answer(request: Request, error: Exception) -> Response:
        return response(from_http(error) if isinstance(error, HTTPException) else error, request.scope)

    app.add_exception_handler(PacaError, answer)
    app.add_exception_handler(HTTPException, answer)
