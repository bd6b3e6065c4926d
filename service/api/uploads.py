"""A request's body under its limits: read in time, recognised, unpacked into pictures (still encoded) and
parameters.

Three forms: the bytes of one picture, multipart with parts named `file`, JSON with base64. Everything stays
in memory, which the body limit bounds; nothing is written to disk and no client's file name is used. What the
bytes show is `images`' business.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import time
from dataclasses import dataclass, field
from typing import Any, NoReturn

from starlette.datastructures import Headers
from starlette.types import Receive

from .. import images
from ..errors import ClientGone, MalformedRequest, NotAnImage, PacaError, TooLarge
from .multipart import parse_multipart
from .problems import SlowUpload

BODY_SECONDS = 10.0  # a body has this long, and a second more for each BODY_RATE bytes that came
BODY_RATE = 64 * 1024
MAX_JSON_VALUES = 512  # of a JSON body: it carries a few pictures and parameters, anything longer is hostile
MEMBERS = ("image", "images", "inputs", "parameters")


@dataclass(frozen=True)
class Upload:
    """pictures: encoded files, or the error that one of them is. several: the answer is a list. texts: form
    fields; values: JSON parameters."""

    pictures: list[bytes | PacaError]
    several: bool = False
    texts: dict[str, list[str]] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)


async def read_body(headers: Headers, receive: Receive, limit: int) -> bytes:
    """The whole body, at most `limit` bytes; TooLarge as soon as that is known, SlowUpload when it does not
    come, ClientGone when nobody is there."""
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise NotAnImage("compressed request bodies are not accepted; send the picture as it is")
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise body_too_large(limit)
    chunks: list[bytes] = []
    size, started = 0, time.monotonic()
    while True:
        left = started + BODY_SECONDS + size / BODY_RATE - time.monotonic()
        try:
            async with asyncio.timeout(left):
                message = await receive()
        except TimeoutError:
            raise slow_upload() from None
        if message["type"] == "http.disconnect":
            raise ClientGone("the client went away before its request was complete")
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise body_too_large(limit)
        chunks.append(chunk)
        if not message.get("more_body"):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def disconnected(receive: Receive) -> None:
    """Returns when the caller has left. The body must have been read: the only message left is that one."""
    while (await receive())["type"] != "http.disconnect":
        pass


def slow_upload() -> SlowUpload:
    """The refusal of a body that does not come."""
    return SlowUpload(
        f"the body did not arrive in time: {BODY_SECONDS:.0f} seconds and {BODY_RATE // 1024} KiB/s "
        "are asked",
        limit="body_seconds",
    )


def body_too_large(limit: int) -> TooLarge:
    """The refusal of a body of more than `limit` bytes."""
    return TooLarge(
        f"the request body is larger than {limit} bytes; send smaller or fewer pictures",
        limit="max_body_bytes",
        value=limit,
    )


def unpack(body: bytes, content_type: str, max_images: int) -> Upload:
    """Recognises the form of a body. Bytes that look like a picture are one, whatever they are declared to
    be."""
    kind = content_type.partition(";")[0].strip().lower()
    if not body:
        raise MalformedRequest(
            f"the body is empty; send a {images.accepted()} file, as raw bytes, multipart `file` or base64 "
            "in JSON"
        )
    if looks_like_picture(body) or kind.startswith("image/") or kind == "application/octet-stream":
        return Upload([body])
    if kind == "multipart/form-data":
        files, fields = parse_multipart(body, content_type, max_images)
        return Upload(list(files), several=len(files) > 1, texts=fields)
    if kind == "application/json" or kind.endswith("+json"):
        return _from_json(body, max_images)
    raise NotAnImage(
        f"the body is no {images.accepted()}; other forms need their Content-Type: multipart/form-data or "
        "application/json"
    )


def looks_like_picture(body: bytes) -> bool:
    """Whether the first bytes are those of an accepted format."""
    return images.recognise(body) is not None


def _from_json(body: bytes, max_images: int) -> Upload:
    document = load_json(body, MAX_JSON_VALUES)
    if not isinstance(document, dict):
        raise MalformedRequest('the JSON body must be an object such as {"image": "<base64>"}')
    unknown = [name for name in document if name not in MEMBERS]
    named = [name for name in MEMBERS[:3] if name in document]
    if unknown or len(named) != 1:
        raise MalformedRequest(
            'the JSON body takes one of "image", "images", "inputs", and optionally "parameters"'
        )
    values = document.get("parameters", {})
    if not isinstance(values, dict):
        raise MalformedRequest('"parameters" must be an object')
    pictures = document[named[0]]
    several = isinstance(pictures, list)
    if several != (named[0] == "images") and named[0] != "inputs":
        raise MalformedRequest('"image" takes one base64 text, "images" a list of them')
    items = pictures if several else [pictures]
    if not items:
        raise MalformedRequest(f'"{named[0]}" is empty; send at least one picture')
    if len(items) > max_images:
        raise TooLarge(
            f"{len(items)} pictures in one request; at most {max_images} are taken",
            limit="max_images",
            value=max_images,
        )
    decoded = [_decoded(item) for item in items]
    if not several and isinstance(decoded[0], PacaError):
        raise decoded[0]
    return Upload(decoded, several=several, values=values)


def _decoded(text: object) -> bytes | PacaError:
    """Base64 with or without a `data:` prefix, standard or URL-safe alphabet, line breaks allowed."""
    if not isinstance(text, str):
        return MalformedRequest("a picture in JSON is a base64 text")
    if text.startswith("data:"):
        header, comma, text = text.partition(",")
        if not comma or not header.endswith(";base64"):
            return MalformedRequest("a data: URI must be of the form data:image/…;base64,…")
    elif text[:8].lower().startswith(("http:", "https:", "ftp:", "file:")):
        return MalformedRequest("the server fetches no addresses; send the picture itself")
    try:
        compact = text if text.isascii() and not any(c in text for c in "\r\n \t") else "".join(text.split())
        return base64.b64decode(
            compact.translate(_URL_SAFE) if "-" in compact or "_" in compact else compact, validate=True
        )
    except (binascii.Error, ValueError):
        return MalformedRequest("a picture's base64 cannot be decoded")


_URL_SAFE = str.maketrans("-_", "+/")


def load_json(body: bytes, max_values: int) -> Any:
    """Strict JSON: UTF-8 (a byte-order mark is passed over), no NaN, no name twice, at most `max_values`
    values, which also bounds its depth; MalformedRequest otherwise."""
    if body.count(b",") + body.count(b"[") + body.count(b"{") > max_values:
        raise MalformedRequest(
            f"the JSON holds more than {max_values} values", limit="max_json_values", value=max_values
        )
    try:
        return json.loads(body.decode("utf-8-sig"), object_pairs_hook=_object, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise MalformedRequest(
            "the body is not valid JSON (UTF-8, no NaN or Infinity, no name twice, not deeply nested)"
        ) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError
    return document


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)
