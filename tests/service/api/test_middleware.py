"""What stands around every request: one log line, harmless whatever the client sent, and an honest last word
on errors."""

from __future__ import annotations

import json
import logging

import pytest

from service.api.logs import JsonLines


@pytest.fixture
def lines(caplog):
    """The access log so far, as it would be written."""
    caplog.set_level(logging.DEBUG, "paca.access")
    return lambda: [JsonLines().format(record) for record in caplog.records if record.name == "paca.access"]


def test_one_request_is_one_line(client, jpeg, lines):
    client.post("/classify?top_k=1", content=jpeg, headers={"X-Request-ID": "r1"})
    (line,) = lines()
    said = json.loads(line)
    assert (said["request_id"], said["method"], said["path"], said["status"], said["pictures"]) == (
        "r1",
        "POST",
        "/classify",
        200,
        1,
    )
    assert said["bytes_in"] == len(jpeg)
    assert said["ms"] > 0


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/%0d%0aERROR%20fake", {}),
        ("/%1b[31m", {"User-Agent": "x\x1b"}),
        ("/" + "a" * 6000, {"X-Request-ID": "b" * 10_000}),
        ("/%25s%25d{}", {"X-Request-ID": "%s"}),
        ("/%ff%fe", {"traceparent": "c" * 5000}),
    ],
)
def test_hostile_text_stays_one_short_line(client, lines, path, headers):
    client.get(path, headers=headers)
    (line,) = lines()
    assert line.isascii()
    assert line.isprintable()
    assert len(line) < 1000


def test_what_is_refused_says_the_reason_and_no_content(client, lines):
    client.post("/classify", content=b"my secret text", headers={"Content-Type": "text/plain"})
    (line,) = lines()
    assert json.loads(line)["reason"] == "not-an-image"
    assert "secret" not in line


def test_health_checks_are_not_logged_above_debug(client, lines):
    client.get("/healthz")
    assert json.loads(lines()[0])["level"] == "debug"


def test_an_error_nobody_foresaw_is_a_bare_500_and_a_logged_traceback(open_app, jpeg, caplog, monkeypatch):
    with open_app() as client:
        predictor = client.app.state.paca.registry.get()

        async def broken(*_):
            raise RuntimeError("/secret/path")

        monkeypatch.setattr(predictor, "classify", broken)
        answer = client.post("/classify", content=jpeg)
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert "secret" not in answer.text
    assert answer.json()["request_id"] in str([getattr(record, "fields", None) for record in caplog.records])
    assert any(record.exc_info for record in caplog.records)


def test_a_request_id_is_made_where_none_came(client):
    first, second = (client.get("/healthz").headers["x-request-id"] for _ in range(2))
    assert first != second
