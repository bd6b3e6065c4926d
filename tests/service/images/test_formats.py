"""One table says which formats there are; what names formats elsewhere says the same."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from service.images import Limits, accepted, decode, recognise
from service.images.formats import IMAGE_FORMATS, MEDIA_TYPES, ImageFormat
from tests.service.images.files import file

ROOT = Path(__file__).parents[3]
PICTURE = np.full((64, 96, 3), (200, 30, 90), np.uint8)
formats = pytest.mark.parametrize("row", IMAGE_FORMATS, ids=lambda row: row.name)


@formats
def test_a_file_of_each_format_is_recognised_by_its_bytes_and_decoded(row: ImageFormat) -> None:
    row.prepare()
    data = file(PICTURE, row.plugin)
    assert recognise(data) is row
    decoded = decode(data, Limits())
    assert (decoded.format, decoded.width, decoded.height) == (row.name, 96, 64)
    assert np.abs(decoded.rgb.astype(int) - PICTURE).max() <= 16


@formats
def test_no_other_format_claims_the_same_bytes(row: ImageFormat) -> None:
    row.prepare()
    data = file(PICTURE, row.plugin)
    assert [other.name for other in IMAGE_FORMATS if other.matches(data[:64])] == [row.name]


@pytest.mark.parametrize("data", [b"", b"\xff", b"RIFF", b"{}", b"--boundary\r\n", b"GIF89a", bytes(40)])
def test_nothing_else_is_recognised(data: bytes) -> None:
    assert recognise(data) is None


def test_sentences_name_every_format_once() -> None:
    assert sorted(re.split(", | or ", accepted())) == sorted(row.title for row in IMAGE_FORMATS)


@pytest.mark.parametrize("page", ["docs/api.md", "service/api/static/index.html"])
def test_pages_for_people_name_every_format(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    assert [row.title for row in IMAGE_FORMATS if not re.search(rf"\b{row.title}\b", text)] == []
    assert [media for media in MEDIA_TYPES if media not in text] == []
