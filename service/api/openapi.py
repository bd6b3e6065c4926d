"""The OpenAPI document: what FastAPI cannot see because bodies are read under limits (request forms,
parameters) and what all operations share (errors)."""

from __future__ import annotations

import re
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

from .. import __version__, images
from .problems import MEDIA_TYPE, STATUS
from .schemas import Problem

BODIES = (*images.MEDIA_TYPES, "application/octet-stream")
EVERYWHERE = (401, 431, 414)
DESCRIPTION = f"""A photo in, predictions, explanations and label maps out.

Photos are sent as raw bytes, as multipart parts named `file`, or as base64 in JSON.
{images.accepted("and")} are told apart by their bytes.
Errors are RFC 9457 problem documents. The server fetches no addresses."""
_DATA = "UklGRiIAAABXRUJQVlA4IBYAAAAwAQCdASoBAAEADsD+JaQAA3AAAAAA"


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of an operation that can answer these statuses."""
    responses: dict[int | str, dict[str, Any]] = {}
    for status in sorted({*statuses, *EVERYWHERE}):
        titles = ", ".join(row.title for row in STATUS.values() if row.status == status)
        responses[status] = {"model": Problem, "description": titles}
        if status == 503:
            responses[status]["headers"] = {
                "Retry-After": {
                    "description": "Seconds to wait before the same request may succeed.",
                    "schema": {"type": "integer"},
                }
            }
    return responses


def failures(kind: type[BaseModel], *statuses: int) -> dict[int | str, dict[str, Any]]:
    """Like `errors`, for paths whose protocol has its own error document."""
    return {status: answer | {"model": kind} for status, answer in errors(*statuses).items()}


def inference(request: type[BaseModel], answer: type[BaseModel], failure: type[BaseModel]) -> dict[str, Any]:
    """Keyword arguments of the route decorator for tensor inference."""
    raw = {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}
    ok = {"model": answer, "description": "The outputs.", "content": {"application/octet-stream": raw}}
    schema = {"$ref": f"#/components/schemas/{request.__name__}"}
    length = {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "required": False,
        "schema": {"type": "integer"},
    }
    return {
        "responses": {200: ok} | failures(failure, 400, 404, 408, 413, 415, 422, 503, 504),
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": schema}, "application/octet-stream": raw},
            },
            "parameters": [length | {"description": "Bytes of the JSON part, where raw tensors follow it."}],
        },
    }


def feedback(body: type[BaseModel]) -> dict[str, Any]:
    """Keyword arguments of the route decorator for /feedback."""
    model = {"name": "model", "in": "query", "required": False, "schema": {"type": "string"}}
    return {
        "tags": ["Photos"],
        "status_code": 204,
        "response_class": Response,
        "responses": errors(400, 404, 408, 413, 415, 422, 503),
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}}
                },
            },
            "parameters": [model | {"description": "Whose class it is. Default: the default model."}],
        },
    }


def text() -> dict[int | str, dict[str, Any]]:
    """The `responses` of an operation that answers plain text."""
    return {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


def job(
    parameters: type[BaseModel],
    one: type[BaseModel],
    several: type[BaseModel],
    pictures: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Keyword arguments of the route decorator of a job."""
    answers: dict[int | str, dict[str, Any]] = {
        200: {
            "model": one | several,
            "description": "One picture: its answer. Several: `results`, one answer or problem each, in "
            "order.",
            "content": {
                media: {"schema": {"type": "string", "contentMediaType": media}} for media in pictures
            },
            "headers": {
                "X-Request-ID": {"description": "The caller's, or a made one.", "schema": {"type": "string"}},
                "Server-Timing": {
                    "description": "The numbers of `timings_ms`.",
                    "schema": {"type": "string"},
                },
            },
        }
    }
    schema = parameters.model_json_schema(ref_template="#/components/schemas/{model}")["properties"]
    encoded = {
        "type": "string",
        "description": "Base64, with or without a `data:` prefix.",
        "examples": [_DATA],
    }
    values = {
        "type": "object",
        "properties": schema,
        "additionalProperties": False,
        "description": "The query's parameters, if not given there.",
    }
    texts = {"type": "array", "items": encoded, "minItems": 1}

    def body(name: str, picture: dict[str, Any]) -> dict[str, Any]:
        members = {name: picture, "parameters": values}
        return {"type": "object", "properties": members, "required": [name], "additionalProperties": False}

    forms: dict[str, Any] = {
        media: {"schema": {"type": "string", "contentMediaType": media}} for media in BODIES
    }
    file = {
        "type": "array",
        "items": {"type": "string", "contentMediaType": "application/octet-stream"},
        "minItems": 1,
    }
    forms["multipart/form-data"] = {
        "schema": {"type": "object", "properties": {"file": file, **schema}, "required": ["file"]}
    }
    forms["application/json"] = {
        "schema": {
            "oneOf": [
                body("image", encoded),
                body("images", texts),
                body("inputs", {"anyOf": [encoded, texts]}),
            ]
        },
        "example": {"image": _DATA, "parameters": _example(schema)},
    }
    query = [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": field.pop("description", ""),
            "schema": field,
        }
        for name, field in ((name, dict(field)) for name, field in schema.items())
    ]
    return {
        "tags": ["Photos"],
        "responses": answers | errors(400, 404, 406, 408, 413, 415, 422, 503, 504),
        "openapi_extra": {"requestBody": {"required": True, "content": forms}, "parameters": query},
    }


def _example(schema: dict[str, Any]) -> dict[str, Any]:
    """One parameter of a job with a value: the first that is not the model."""
    name, field = next((name, field) for name, field in schema.items() if name != "model")
    return {name: field["examples"][0]}


def install(app: FastAPI, bodies: tuple[type[BaseModel], ...]) -> None:
    """Makes the app's document: errors under their own media type; `bodies`: models that only request bodies
    name."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(
                title="PaCa", version=__version__, description=DESCRIPTION, routes=app.routes, tags=TAGS
            )
            for path, operations in made["paths"].items():
                for operation in operations.values():
                    _complete(path, operation)
            _, bodies_schema = models_json_schema(
                [(body, "validation") for body in bodies], ref_template="#/components/schemas/{model}"
            )
            made["components"]["schemas"].update(bodies_schema["$defs"])
            made["components"]["securitySchemes"] = KEYS
            made["security"] = [{}, *({name: []} for name in KEYS)]
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def operation_id(route: APIRoute) -> str:
    """A short name, which generated clients make a method of."""
    return (
        ("v2_" if route.path.startswith("/v2") else "")
        + route.name
        + ("_of_version" if "{version}" in route.path else "")
    )


def _complete(path: str, operation: dict[str, Any]) -> None:
    """Adds the path's parameters, which handlers read themselves, and gives problems their media type."""
    for name in reversed(re.findall(r"{(\w+)}", path)):
        parameter = {
            "name": name,
            "in": "path",
            "required": True,
            "description": IN_PATHS[name],
            "schema": {"type": "string"},
        }
        operation["parameters"] = [parameter, *operation.get("parameters", [])]
    for status, answer in operation["responses"].items():
        if (
            status[0] in "45"
            and not path.startswith("/v2")
            and "application/json" in answer.get("content", {})
        ):
            answer["content"] = {MEDIA_TYPE: answer["content"]["application/json"]}


IN_PATHS = {"name": "The model.", "version": "Its version."}
KEYS = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "Only where the server was given API keys.",
    },
    "header": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "The same key, in a header of its own.",
    },
}
TAGS = [
    {"name": "Photos", "description": "The jobs."},
    {"name": "Models", "description": "What is loaded."},
    {"name": "Operations", "description": "Health and metrics."},
    {"name": "Open Inference Protocol", "description": "Version 2, for KServe and Triton clients."},
]
