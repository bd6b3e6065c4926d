"""Everything that can go wrong, as a tree. Knows no HTTP: `api/problems.py` maps each leaf to a status in one
table.

PacaError
├── InvalidInput            the caller's fault; sending the same again cannot help
│   ├── MalformedRequest      the request cannot be understood (JSON, base64, multipart)
│   ├── NotAnImage            the bytes are no accepted image format
│   ├── BadImage              an accepted format that cannot be decoded
│   ├── TooLarge              too many bytes, pixels or pictures; `limit` says which limit
│   ├── BadParameter          a parameter with a value that is not allowed
│   ├── UnknownModel          no such model or version
│   └── ClientGone            the caller left: nobody reads the response
├── Unavailable             the server's state; the same request may succeed later, `retry_after` seconds from
                            now
│   ├── Overloaded            the queue is full
│   ├── Draining              shutting down
│   ├── NotReady              no model is loaded yet
│   └── EngineFailure         memory or the device failed: twice on one item, or while a model was loaded
│       └── DeviceLost          the device answers no more in this process, which ends
├── DeadlineExceeded        the answer would come too late
└── CannotStart             a configuration that cannot work; said before serving
    ├── BadArtifact           a model file that cannot be trusted or read
    └── ProviderUnavailable   the execution provider requested is not here
"""

from __future__ import annotations


class PacaError(Exception):
    """Base of all. The message is for users: what was wrong and what to do; never a path, a traceback or an
    internal name."""

    def __init__(self, message: str, **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.details = details  # machine-readable extras, e.g. limit="max_pixels", value=64_000_000


class InvalidInput(PacaError): ...


class MalformedRequest(InvalidInput): ...


class NotAnImage(InvalidInput): ...


class BadImage(InvalidInput): ...


class TooLarge(InvalidInput): ...


class BadParameter(InvalidInput): ...


class UnknownModel(InvalidInput): ...


class ClientGone(InvalidInput): ...


class Unavailable(PacaError):
    def __init__(self, message: str, retry_after: float = 1.0, **details: object) -> None:
        super().__init__(message, **details)
        self.retry_after = retry_after


class Overloaded(Unavailable): ...


class Draining(Unavailable): ...


class NotReady(Unavailable): ...


class EngineFailure(Unavailable): ...


class DeviceLost(EngineFailure):
    """Nothing but a new process helps; `retry_after` leaves it the time to load its models."""

    exit_code = 69  # EX_UNAVAILABLE of sysexits.h; tells a supervisor that starting again may help

    def __init__(self, message: str, retry_after: float = 10.0, **details: object) -> None:
        super().__init__(message, retry_after, **details)


class DeadlineExceeded(PacaError): ...


class CannotStart(PacaError): ...


class BadArtifact(CannotStart): ...


class ProviderUnavailable(CannotStart): ...


def kind_name(kind: str) -> str:
    """The stable name of a kind of error, from that of its class: BadArtifact → bad-artifact."""
    return "".join("-" + c.lower() if c.isupper() else c for c in kind).lstrip("-")
