"""The demo page's files and the reference at /docs need no other host. What the page does is tested in a real
browser, in tests/browser."""

from __future__ import annotations

import json
import re

import pytest

from service.api.pages import STATIC
from service.colours import COLOUR_MAPS, DEFAULT_COLOUR_MAP


@pytest.mark.parametrize("file", sorted(p.name for p in STATIC.iterdir()))
def test_every_file_of_the_page_is_served(client, file):
    answer = client.get("/" if file == "index.html" else f"/{file}")
    assert answer.status_code == 200
    assert answer.content == (STATIC / file).read_bytes()


def test_an_unchanged_file_is_not_sent_again(client):
    etag = client.get("/").headers["etag"]
    assert client.get("/", headers={"If-None-Match": etag}).status_code in (200, 304)


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_load_nothing_from_elsewhere(client, path):
    text = client.get(path).text
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?:https?:)?//""", text)


def test_the_reference_names_every_operation_parameter_and_object(client):
    document, text = client.get("/openapi.json").json(), client.get("/docs").text
    for path, verbs in document["paths"].items():
        assert f"<code>{path}</code>" in text
        for item in verbs.values():
            for parameter in item.get("parameters", []):
                assert parameter["name"] in text
    for name in re.findall(r'href="#([^"]+)"', text):
        assert f'id="{name}"' in text, name


def test_the_reference_runs_no_script(client):
    answer = client.get("/docs")
    assert "<script" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_the_page_has_its_colours_from_the_server_s_tables(client):
    answer = client.get("/colours.js")
    assert answer.headers["content-type"].startswith("text/javascript")
    maps = json.loads(re.findall(r"COLOUR_MAPS = (.*);", answer.text)[0])
    assert maps == [
        {"name": row.name, "note": row.note, "table": row.table.tobytes().hex()}
        for row in COLOUR_MAPS.values()
    ]
    assert maps[0]["name"] == DEFAULT_COLOUR_MAP
