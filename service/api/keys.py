"""API keys: read from a file with one key a line, at the start and on SIGHUP, compared in constant time.
There are three ways to send one, all of them standard."""

from __future__ import annotations

import base64
import hashlib
import hmac
from pathlib import Path

from starlette.datastructures import Headers

from ..errors import CannotStart
from .problems import Unauthorized

# What probes and scrapers ask for: needs no key, is logged at debug where it succeeds, and makes no span.
OPEN_PATHS = frozenset(
    {
        "/healthz",
        "/readyz",
        "/metrics",
        "/v2/health/live",
        "/v2/health/ready",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/inference.GRPCInferenceService/ServerLive",
        "/inference.GRPCInferenceService/ServerReady",
    }
)


class ApiKeys:
    """The accepted keys, kept as digests."""

    def __init__(self, file: Path) -> None:
        """CannotStart where the file cannot be read or holds no key."""
        self._file = file
        self._digests = _read(file)

    def reload(self) -> None:
        """Reads the file again. CannotStart as at the start; the keys known so far then stay."""
        self._digests = _read(self._file)

    def check(self, path: str, headers: Headers) -> None:
        """Unauthorized unless the path is open to all or a right key came with the request. Every key is
        compared, equal or not."""
        if path in OPEN_PATHS:
            return
        given = _digest(_presented(headers))
        if not sum(hmac.compare_digest(given, digest) for digest in self._digests):
            raise Unauthorized(
                "this server wants an API key: send it as `Authorization: Bearer <key>` or in `X-API-Key`"
            )


def _read(file: Path) -> list[bytes]:
    """Digests of the keys in a file. Empty lines and lines that start with # are skipped."""
    try:
        lines = file.read_text("utf-8-sig").splitlines()  # Windows editors begin UTF-8 files with a mark
    except (OSError, UnicodeDecodeError):
        raise CannotStart(
            f"the API key file {file} cannot be read; PACA_API_KEYS names a UTF-8 file with one key a line"
        ) from None
    keys = [key for line in lines if (key := line.strip()) and not key.startswith("#")]
    if not keys:
        raise CannotStart(f"the API key file {file} holds no key; put one key a line, or unset PACA_API_KEYS")
    return [_digest(key.encode()) for key in keys]


def _presented(headers: Headers) -> bytes:
    """The key of `X-API-Key`, `Authorization: Bearer`, or the password of `Authorization: Basic`, which a
    browser can ask a person for."""
    if key := headers.get("x-api-key"):
        return key.encode("latin-1")
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
        except ValueError:
            return b""
    return value.strip().encode("latin-1") if scheme.lower() == "bearer" else b""


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
