"""docs/api.md says what the code does: statuses, metrics, limits, parameters."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service import options, wiring
from service.api import multipart, parameters, protocol, tensors, uploads
from service.api.problems import STATUS, kind_of
from service.settings import Settings

TEXT = (Path(__file__).parents[3] / "docs" / "api.md").read_text("utf-8")


def section(title: str) -> str:
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_every_error_is_documented_with_its_status():
    rows = re.findall(r"^\| (\d{3}) \| ([a-z, -]+) \|", section("Errors"), re.M)
    documented = {(int(status), kind.strip()) for status, kinds in rows for kind in kinds.split(",")}
    real = {(row.status, kind_of(kind(""))) for kind, row in STATUS.items()}
    assert documented | {(499, "client-gone")} == real


def test_every_metric_is_documented_and_real(client):
    documented = set(re.findall(r"`(paca_[a-z_]+)`", section("Metrics")))
    real = set(re.findall(r"^# TYPE (paca_[a-z_]+) ", client.get("/metrics").text, re.M))
    assert documented == real


@pytest.mark.parametrize(
    ("said", "real"),
    [
        ("32 MiB", Settings().max_body_mb == 32),
        ("64 million", Settings().max_pixels == 64_000_000),
        ("| 16 | `PACA_MAX_IMAGES`", Settings().max_images == 16),
        (
            "| 16, or two full rounds of runs | `PACA_QUEUE_SIZE`",
            (Settings().queue_size, wiring.WAITING) == (0, 16),
        ),
        ("15 s", Settings().deadline_ms == 15_000),
        ("16 KiB · 8 KiB", (protocol.HEAD_BYTES, protocol.ADDRESS_BYTES) == (16 * 1024, 8 * 1024)),
        (
            "5 s · 10 s and a second more for each 64 KiB",
            (protocol.HEAD_SECONDS, uploads.BODY_SECONDS, uploads.BODY_RATE) == (5, 10, 65536),
        ),
        (
            "512 (tensors: 500,000; send more as binary data)",
            (uploads.MAX_JSON_VALUES, tensors.MAX_JSON_VALUES) == (512, 500_000),
        ),
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
    client.post(
        "/classify",
        content=jpeg,
        headers={"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
    )
    client.post("/classify", content=b"")
    fields = {name for record in caplog.records if record.name == "paca.access" for name in record.fields}
    assert fields == set(
        re.findall(r"`([a-z_]+)`", section("Logs").partition(": `")[2].partition(". ")[0])
    ) | {"request_id"}


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (Path(__file__).parents[3] / "docs" / target).exists(), target


def test_every_parameter_is_documented_with_its_default():
    rows = {
        name: (values, default)
        for name, values, default in re.findall(
            r"^\| `(\w+)` \| \w+ \| (.*?) \| (.*?) \|", section("Parameters"), re.M
        )
    }
    real = options.ExplainOptions.model_json_schema()["properties"]
    assert set(rows) == set(real)
    for name, (values, default) in rows.items():
        plain = real[name].get("default")
        if isinstance(plain, str | int | float):
            assert default.strip("`") == str(plain).lower(), name
        for choice in real[name].get("enum", []):
            assert f"`{choice}`" in values, name


def test_every_field_of_an_answer_is_documented(client):
    known = client.get("/openapi.json").json()["components"]["schemas"]
    documented: set[tuple[str, str]] = set()
    paths: list[str] = []
    for where, names in re.findall(r"^\|(.*?)\|(.*?)\|", section("Fields"), re.M):
        if where.strip():
            paths = [
                "" if where.strip() == "the answer" else path
                for path in re.findall(r"`([^`]+)`", where) or [""]
            ]
            paths = [f"explanations[]{path}" if path.startswith(".") else path for path in paths]
        documented |= {(path, name) for path in paths for name in re.findall(r"`(\w+)`", names)}
    missing: set[tuple[str, str]] = set()

    def walk(schema: dict, path: str) -> None:
        for option in schema.get("anyOf", [schema]):
            if "$ref" in option:
                for name, field in known[option["$ref"].rsplit("/", 1)[-1]]["properties"].items():
                    at = re.sub(
                        r"(clusters|parts)\[\]\.heatmap\.scale", "heatmap.scale", path
                    )  # documented once
                    if (at, name) not in documented:
                        missing.add((at, name))
                    walk(field, f"{path}.{name}".removeprefix("."))
            elif "items" in option:
                walk(option["items"], f"{path}[]")
            elif isinstance(option.get("additionalProperties"), dict):
                walk(option["additionalProperties"], f"{path}.*")

    walk({"$ref": "#/ExplainResponse"}, "")
    assert missing == set()
