"""Log lines: one each, with whatever a client sent escaped and short."""

import json
import logging

import pytest

from service.api.logs import MAX_CHARACTERS, Console, JsonLines, bounded

HOSTILE = 'a\r\nERROR fake \x1b[31m %s {} \u202e \ud800 "'


def record(**fields):
    made = logging.LogRecord("paca.access", logging.INFO, "", 0, "request", (), None)
    made.fields = fields
    return made


@pytest.mark.parametrize("formatter", [JsonLines(), Console()])
def test_a_record_is_one_printable_line(formatter):
    line = formatter.format(record(path=HOSTILE))
    assert "\n" not in line
    assert "\r" not in line
    assert "\x1b" not in line
    line.encode()


def test_json_lines_keep_the_text_and_the_fields():
    line = json.loads(JsonLines().format(record(path=HOSTILE, status=200)))
    assert (line["path"], line["status"], line["message"], line["level"]) == (HOSTILE, 200, "request", "info")


def test_a_clients_text_is_cut():
    assert len(bounded("x" * 10_000)) == MAX_CHARACTERS
    assert bounded("short") == "short"
