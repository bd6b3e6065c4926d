"""Log lines: JSON for collectors, plain text for people; one line each, with whatever a client sent escaped
and short."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

MAX_CHARACTERS = 200  # of any text a client chose


class JsonLines(logging.Formatter):
    """One JSON object a line. ASCII only: control characters, line breaks and odd encodings arrive
    escaped."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:2000],
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)[-4000:]
        return json.dumps(line, separators=(",", ":"), default=str)


class Console(logging.Formatter):
    """`12:00:01 info message name=value …`, escaped where it is not printable."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={value}" for name, value in getattr(record, "fields", {}).items())
        text = f"{_time(record)[11:19]} {record.levelname.lower():7} {record.getMessage()}{fields}"
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:2000])
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


def _time(record: logging.LogRecord) -> str:
    return (
        datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )


def bounded(text: str) -> str:
    """A client's text, cut."""
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"


def configure(log_format: str, level: str) -> None:
    """Sends every logger of the process to standard error in one format. A log that cannot be written (disk
    full, pipe closed) stops nothing."""
    logging.raiseExceptions = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if log_format == "json" else Console())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    for name, least in {
        "uvicorn": "WARNING",
        "asyncio": "WARNING",
        "python_multipart": "ERROR",
        "PIL": "WARNING",
    }.items():
        logging.getLogger(name).setLevel(least)
