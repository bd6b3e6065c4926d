"""Parameters on the wire: the query, form fields and JSON `parameters` become one set of options.

What there is, with which types and ranges, is declared in `options`; here only the sources are read.
"""

from __future__ import annotations

from typing import Any, TypeVar
from urllib.parse import parse_qsl

from ..errors import BadParameter, MalformedRequest
from ..options import JobOptions, printable

MAX_FIELDS = 64
Options = TypeVar("Options", bound=JobOptions)


def parse_query(query: bytes) -> dict[str, list[str]]:
    """A query string as name → values; MalformedRequest where it is not one."""
    try:
        pairs = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS
        )
    except ValueError:
        raise MalformedRequest("the query string cannot be read; percent-encode it as UTF-8") from None
    return values_by_name(pairs)


def values_by_name(pairs: list[tuple[str, str]]) -> dict[str, list[str]]:
    """Pairs as name → values, in order."""
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    return values


def parse(kind: type[Options], *texts: dict[str, list[str]], values: dict[str, Any] | None = None) -> Options:
    """The options of a request, from text sources (query, form) and JSON. A name given twice, unknown, or
    with a bad value is a BadParameter."""
    fields = {field.alias or name: field for name, field in kind.model_fields.items()}
    merged: dict[str, Any] = {}
    for source in (*texts, values or {}):
        for name, value in source.items():
            shown = printable(name)
            if name not in fields:
                raise BadParameter(
                    f"there is no parameter {shown!r}; there are: {', '.join(fields)}", parameter=shown
                )
            if name in merged:
                raise BadParameter(
                    f"{shown} is given in the query and in the body; give it once", parameter=shown
                )
            if source is not values and not isinstance(fields[name].default, tuple):
                if len(value) > 1:
                    raise BadParameter(f"{shown} takes one value, {len(value)} were given", parameter=shown)
                value = value[0]
            merged[name] = value
    return kind(**merged)
