"""multipart/form-data out of a body that is already in memory and bounded: parts named `file` are pictures,
the others are parameters.

`python-multipart` does the parsing; this file sets the limits on parts, headers and fields and says what is
wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from ..errors import MalformedRequest, TooLarge
from .parameters import MAX_FIELDS, values_by_name

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_FIELD_BYTES = 4096
MAX_HEADERS = 8  # of one part
MAX_HEADER_BYTES = 8192


def parse_multipart(
    body: bytes, content_type: str, max_images: int
) -> tuple[list[bytes], dict[str, list[str]]]:
    """(pictures in order, form fields by name); MalformedRequest says what cannot be read, TooLarge which
    limit was broken."""
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise MalformedRequest(
            "multipart/form-data without a boundary; let your HTTP library write the Content-Type"
        )
    parts = _Parts(max_images)
    try:
        parser = MultipartParser(
            boundary, parts.callbacks(), max_header_count=MAX_HEADERS, max_header_size=MAX_HEADER_BYTES
        )
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise MalformedRequest(
            "the multipart body cannot be read; is the boundary right and every part complete?"
        ) from None
    if not parts.finished:
        raise MalformedRequest("the multipart body ends before its last boundary")
    if not parts.files:
        raise MalformedRequest("the multipart body has no part named `file`")
    return parts.files, values_by_name(parts.fields)


class _Parts:
    """Collects what the parser finds."""

    def __init__(self, max_images: int) -> None:
        self.max_images = max_images
        self.files: list[bytes] = []
        self.fields: list[tuple[str, str]] = []
        self.finished = False
        self._begin()

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self.header, self.value, self.disposition, self.name = b"", b"", b"", ""
        self.chunks: list[bytes] = []
        self.size = 0

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self.header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self.value += data[start:end]

    def _header_end(self) -> None:
        if self.header.lower() == b"content-disposition":
            self.disposition = self.value
        self.header, self.value = b"", b""

    def _headers_finished(self) -> None:
        kind, options = parse_options_header(self.disposition)
        if kind != b"form-data" or b"name" not in options:
            raise MalformedRequest("every multipart part needs `Content-Disposition: form-data` with a name")
        self.name = options[b"name"].decode("utf-8", "replace")
        if self.name == "file":
            if len(self.files) == self.max_images:
                raise TooLarge(
                    f"more than {self.max_images} pictures in one request",
                    limit="max_images",
                    value=self.max_images,
                )
        elif b"filename" in options:
            raise MalformedRequest("a picture's part must be named `file`")
        elif len(self.fields) == MAX_FIELDS:
            raise TooLarge(f"more than {MAX_FIELDS} form fields", limit="max_fields", value=MAX_FIELDS)

    def _data(self, data: bytes, start: int, end: int) -> None:
        self.size += end - start
        if self.name != "file" and self.size > MAX_FIELD_BYTES:
            raise TooLarge(
                f"a form field is longer than {MAX_FIELD_BYTES} bytes",
                limit="max_field_bytes",
                value=MAX_FIELD_BYTES,
            )
        self.chunks.append(data[start:end])

    def _end(self) -> None:
        content = b"".join(self.chunks)
        if self.name == "file":
            self.files.append(content)
            return
        try:
            self.fields.append((self.name, content.decode("utf-8")))
        except UnicodeDecodeError:
            raise MalformedRequest("a form field is not UTF-8 text") from None

    def _finish(self) -> None:
        self.finished = True
