"""Settings: from PACA_* variables only, checked at start, and every one documented."""

import os
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from service import cgroup
from service.errors import BadArtifact
from service.settings import ModelSettings, Settings, cores, misspelt

CONTRACT = """HOST, PORT, MODELS, DEFAULT_MODEL, PROVIDER, DEVICE_ID, DEVICES, PRECISION, INSTANCES,
THREADS, MAX_BATCH, MAX_WAIT_MS, QUEUE_SIZE, DEADLINE_MS,
MAX_BODY_MB, MAX_PIXELS, MAX_MAP_PIXELS, MAX_IMAGES, NOVELTY_THRESHOLD,
ANSWER_LOG, ROOT_PATH, WORKERS, GRPC_PORT, API_KEYS, CORS_ORIGINS,
LOG_FORMAT, LOG_LEVEL, OTEL, METRICS, DOCS, DEMO, WATCH_MODELS"""


def test_the_settings_are_the_promised_ones_and_each_says_what_it_does() -> None:
    assert {name.upper() for name in Settings.model_fields} == {
        word.strip() for word in CONTRACT.replace("\n", " ").split(",")
    }
    assert all(len(field.description or "") > 20 for field in Settings.model_fields.values())


def test_variables_win_over_defaults_and_arguments_over_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACA_PORT", "9001")
    monkeypatch.setenv("PACA_CORS_ORIGINS", "https://a.example, https://b.example")
    assert Settings().port == 9001
    assert Settings().cors_origins == ["https://a.example", "https://b.example"]
    assert Settings(port=9002).port == 9002


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACA_API_KEYS", "")
    monkeypatch.setenv("PACA_PORT", "")
    assert Settings().api_keys is None
    assert Settings().port == 8000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "70000"),
        ("PROVIDER", "tpu"),
        ("QUEUE_SIZE", "-1"),
        ("MAX_BODY_MB", "-1"),
        ("LOG_FORMAT", "xml"),
    ],
)
def test_a_value_that_cannot_be_is_refused_at_start(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"PACA_{name}", value)
    with pytest.raises(ValidationError):
        Settings()


def test_the_default_repository_is_the_embedded_one() -> None:
    assert Settings().models == Path("service").resolve() / "models"


def test_at_least_one_core_is_counted() -> None:
    assert cores() >= 1


@pytest.mark.parametrize("written", ["vision", "/vision", "vision/", "/vision/", " /vision/ "])
def test_a_prefix_is_the_same_however_it_is_written(monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    monkeypatch.setenv("PACA_ROOT_PATH", written)
    assert Settings().root_path == "/vision"


def test_a_prefix_may_have_parts_or_be_nothing() -> None:
    assert [Settings(root_path=path).root_path for path in ("a/b/", "/", "")] == ["/a/b", "", ""]


@pytest.mark.parametrize("written", ["https://x.example/vision", "/a b", "/a?b", "//a//b"])
def test_what_is_no_prefix_is_refused(written: str) -> None:
    with pytest.raises(ValidationError, match="a prefix is a path such as"):
        Settings(root_path=written)


@pytest.mark.parametrize(
    ("written", "origins"),
    [
        ("https://a.example/", ["https://a.example"]),
        ("HTTPS://A.example:443, http://b.example:8080", ["https://a.example", "http://b.example:8080"]),
        ('["https://a.example/", "https://b.example"]', ["https://a.example", "https://b.example"]),
        ("capacitor://localhost", ["capacitor://localhost"]),
        ("*", ["*"]),
        ("[]", []),
    ],
)
def test_origins_become_what_browsers_send(
    monkeypatch: pytest.MonkeyPatch, written: str, origins: list[str]
) -> None:
    monkeypatch.setenv("PACA_CORS_ORIGINS", written)
    assert Settings().cors_origins == origins


@pytest.mark.parametrize(
    "written",
    ["a.example", "https://a.example/path", "https://u@a.example", "null", '["https://a"', "[1]", "https://"],
)
def test_what_is_no_origin_is_refused(monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    monkeypatch.setenv("PACA_CORS_ORIGINS", written)
    with pytest.raises(ValidationError):
        Settings()


def test_a_port_that_kubernetes_set_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACA_PORT", "tcp://10.96.0.17:80")
    with pytest.raises(ValidationError, match="enableServiceLinks: false"):
        Settings()


def test_a_misspelt_variable_is_named_with_the_one_that_is_meant() -> None:
    assert misspelt(
        ["PACA_MAX_BATCHES", "paca_port", "PACA_DATA", "PACA_XYZ", "PATH", "PACA_PORT_80_TCP"]
    ) == [
        "PACA_MAX_BATCHES is no setting and has no effect; is PACA_MAX_BATCH meant?",
        "PACA_XYZ is no setting and has no effect",
    ]


def test_a_limit_of_the_container_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    for limit, counted in ((None, 64), (2.0, 2), (0.2, 1), (100.0, 64)):
        monkeypatch.setattr(cgroup, "cpu_limit", lambda limit=limit: limit)
        assert cores() == counted


def read(folder: Path, text: str) -> dict[str, object]:
    (folder / "config.json").write_text(text)
    return ModelSettings.read(folder / "config.json").model_dump(exclude_unset=True)


def test_a_model_may_set_a_part_for_itself_and_has_the_servers_for_the_rest(tmp_path: Path) -> None:
    text = (
        '{"provider": "cpu", "device_id": 1, "precision": "int8", "instances": 2, "threads": 3, '
        '"max_batch": 4, "max_wait_ms": 5}'
    )
    assert set(read(tmp_path, text)) == set(ModelSettings.model_fields)
    own = ModelSettings.read(tmp_path / "config.json")
    merged = Settings(threads=9, queue_size=7).for_model(own)
    assert (merged.threads, merged.max_wait_ms, merged.queue_size) == (3, 5.0, 7)
    (tmp_path / "config.json").write_text("{}")
    assert Settings(threads=9).for_model(ModelSettings.read(tmp_path / "config.json")).threads == 9


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"max_bach": 1}', "unknown key 'max_bach'; known are: provider, device_id, precision, instances"),
        ('{"queue_size": 1}', "unknown key 'queue_size'"),
        ('{"max_batch": -1}', "max_batch=-1 is not valid: Input should be greater"),
        ('{"max_batch": 1000}', "max_batch=1000 is not valid"),
        ('{"max_batch": true}', "valid integer"),
        ('{"max_batch": "4"}', "valid integer"),
        ('{"threads": 2.5}', "valid integer"),
        ('{"max_wait_ms": NaN}', "max_wait_ms=nan is not valid"),
        ('{"provider": "tpu"}', "choose one of: auto, cuda, cpu"),
        ('{"precision": "fp8"}', "choose one of: auto, fp32, fp16, int8"),
        ("[1]", "should be an object"),
        ("{", "Invalid JSON"),
        ('{"threads": 1}' + " " * 70_000, "larger than"),
    ],
)
def test_settings_of_a_model_that_cannot_be_are_refused_in_one_line(
    tmp_path: Path, text: str, reason: str
) -> None:
    with pytest.raises(BadArtifact, match=reason) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("config.json")


def test_the_documented_settings_are_all_there_are() -> None:
    text = (Path(__file__).parents[2] / "docs/operations.md").read_text("utf-8")
    documented = re.findall(r"^\| `PACA_(\w+)` \|", text, re.M)
    assert sorted(documented) == sorted(name.upper() for name in Settings.model_fields)


def test_several_workers_share_the_gpus_that_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACA_DEVICES", "2, 3")
    settings = Settings(workers=3)
    assert [settings.for_worker(place).device_id for place in range(3)] == [2, 3, 2]
    assert Settings(devices=()).for_worker(1).device_id == 0
    monkeypatch.setenv("PACA_DEVICES", "all")
    with pytest.raises(ValidationError, match="numbers of GPUs"):
        Settings()
