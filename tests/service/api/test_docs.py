"""docs/api.md says what the code does: statuses, metrics, limits, parameters."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.api import multipart, parameters, protocol, tensors, uploads
from service.api.problems import STATUS, kind_of
from service.settings import Settings

TEXT = (Path(__file__).parents[3] / "docs" / "api.md").read_text("utf-8")


def section(title: str) -> str:
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_every_error_is_documented_with_its_status():
    rows = re.findall(r"^\| (\d{3}) \| ([a-z, -]+) \|", section("Errors"), re.M)
    documented = {(int(status), kind.strip()) for status, kinds in rows for kind in kinds.split(",")}
    real = {(status, kind_of(kind(""))) for kind, (status, _) in STATUS.items()}
    assert documented | {(499, "client-gone")} == real


def test_every_metric_is_documented_and_real(client):
    documented = set(re.findall(r"`(paca_[a-z_]+)`", section("Metrics")))
    real = set(re.findall(r"^# TYPE (paca_[a-z_]+) ", client.get("/metrics").text, re.M))
    assert documented == real


@pytest.mark.parametrize(
    ("said", "real"),
    [
        ("16 MiB", Settings().max_body_mb == 16),
        ("40 million", Settings().max_pixels == 40_000_000),
        ("| 16 | `PACA_MAX_IMAGES`", Settings().max_images == 16),
        ("| 128 | `PACA_QUEUE_SIZE`", Settings().queue_size == 128),
        ("15 s", Settings().deadline_ms == 15_000),
        ("16 KiB · 8 KiB", (protocol.HEAD_BYTES, protocol.ADDRESS_BYTES) == (16 * 1024, 8 * 1024)),
        ("5 s · 10 s and a second more for each 64 KiB", (protocol.HEAD_SECONDS, uploads.BODY_SECONDS, uploads.BODY_RATE) == (5, 10, 65536)),
        ("512 (tensors: 2,000,000)", (uploads.MAX_JSON_VALUES, tensors.MAX_JSON_VALUES) == (512, 2_000_000)),
        ("64 · 4 KiB", (parameters.MAX_FIELDS, multipart.MAX_FIELD_BYTES) == (64, 4096)),
        ("4096 · 16", (protocol.MAX_CONNECTIONS, protocol.MAX_PIPELINED) == (4096, 16)),
        ("20 s without progress", protocol.STALL_SECONDS == 20),
    ],
)
def test_limits_are_those_of_the_code(said, real):
    assert said in section("Limits")
    assert real


def test_every_log_field_is_documented(client, jpeg, caplog):
    caplog.set_level("INFO", "paca.access")
    client.post("/classify", content=jpeg, headers={"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"})
    client.post("/classify", content=b"")
    fields = {name for record in caplog.records if record.name == "paca.access" for name in record.fields}
    assert fields == set(re.findall(r"`([a-z_]+)`", section("Logs").partition(": `")[2].partition(". ")[0])) | {"request_id"}


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (Path(__file__).parents[3] / "docs" / target).exists(), target
