"""Errors on the wire: one table from error to status, answered as RFC 9457 problem+json, or `{"error": …}` on
Open Inference Protocol paths.

The core raises `errors.PacaError` and knows no status; errors that only HTTP can have (a path, an `Accept`
header, a slow upload) stand here.
"""

from __future__ import annotations

import logging
import math
from http import HTTPStatus
from typing import Any

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


STATUS: dict[type[PacaError], tuple[int, str]] = {
    errors.MalformedRequest: (400, "Malformed request"),
    Unauthorized: (401, "API key needed"),
    errors.UnknownModel: (404, "Unknown model"),
    NotFound: (404, "Nothing here"),
    MethodNotAllowed: (405, "Method not allowed"),
    NotAcceptable: (406, "Nothing acceptable to answer with"),
    SlowUpload: (408, "Upload too slow"),
    errors.TooLarge: (413, "Too large"),
    AddressTooLong: (414, "Address too long"),
    errors.NotAnImage: (415, "Not an accepted image format"),
    errors.BadImage: (422, "Image cannot be decoded"),
    errors.BadParameter: (422, "Bad parameter"),
    HeadersTooLarge: (431, "Headers too large"),
    errors.ClientGone: (499, "Client closed the connection"),
    errors.Overloaded: (503, "Overloaded"),
    errors.Draining: (503, "Shutting down"),
    errors.NotReady: (503, "Not ready"),
    errors.EngineFailure: (503, "Inference failed"),
    errors.DeadlineExceeded: (504, "Deadline passed"),
}
UNFORESEEN = (500, "Internal error")


def status_of(error: Exception) -> tuple[int, str]:
    """(status, title) of an error; an error nobody foresaw is a bug and says 500."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), UNFORESEEN)


def kind_of(error: Exception) -> str:
    """The stable name of an error: what `type` ends with, and the reason in the metrics."""
    name = next((kind.__name__ for kind in type(error).__mro__ if kind in STATUS), "InternalError")
    return "".join("-" + c.lower() if c.isupper() else c for c in name).lstrip("-")


def problem(error: Exception, request_id: str) -> dict[str, Any]:
    """The RFC 9457 object of an error. Only a PacaError's message is for users; any other error says nothing
    about itself."""
    status, title = status_of(error)
    detail = "the server met an error it did not foresee; the log has it under this request_id"
    extras: dict[str, object] = {}
    if isinstance(error, PacaError) and status != UNFORESEEN[0]:
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
