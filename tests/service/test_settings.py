"""Settings: from PACA_* variables only, checked at start, and every one documented."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings, cores

CONTRACT = """HOST, PORT, MODELS, DEFAULT_MODEL, PROVIDER, DEVICE_ID, PRECISION, INSTANCES,
THREADS, MAX_BATCH, MAX_WAIT_MS, QUEUE_SIZE, DEADLINE_MS,
MAX_BODY_MB, MAX_PIXELS, MAX_IMAGES, ROOT_PATH, WORKERS, API_KEYS, CORS_ORIGINS,
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
