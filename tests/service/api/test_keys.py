"""API keys: who gets in, and that a wrong file is said before serving."""

import base64

import pytest
from starlette.datastructures import Headers

from service.api.keys import ApiKeys
from service.api.problems import Unauthorized
from service.errors import CannotStart


@pytest.fixture
def keys(tmp_path):
    (tmp_path / "keys").write_text("# for the shop\nfirst-key\n\n  zweiter-schlüssel  \n", "utf-8")
    return ApiKeys(tmp_path / "keys")


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anyone:{password}".encode()).decode()


@pytest.mark.parametrize(
    "headers",
    [
        {"X-API-Key": "first-key"},
        {"Authorization": "Bearer first-key"},
        {"authorization": basic("zweiter-schlüssel")},
    ],
)
def test_a_right_key_gets_in(keys, headers):
    keys.check("/classify", Headers(headers))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-API-Key": ""},
        {"X-API-Key": "first-ke"},
        {"X-API-Key": "# for the shop"},
        {"Authorization": "Bearer"},
        {"Authorization": "first-key"},
        {"Authorization": "Digest first-key"},
        {"Authorization": "Basic §"},
        {"Authorization": basic("wrong")},
    ],
)
def test_anything_else_does_not(keys, headers):
    with pytest.raises(Unauthorized):
        keys.check("/classify", Headers(headers))


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"])
def test_health_and_metrics_need_no_key(keys, path):
    keys.check(path, Headers({}))


@pytest.mark.parametrize("path", ["/", "/docs", "/models", "/healthz/", "/v2", "//healthz"])
def test_everything_else_does(keys, path):
    with pytest.raises(Unauthorized):
        keys.check(path, Headers({}))


@pytest.mark.parametrize("content", [None, b"", b"\n# only a comment\n", b"\xff\xfe"])
def test_a_file_without_a_key_is_said_at_the_start(tmp_path, content):
    if content is not None:
        (tmp_path / "keys").write_bytes(content)
    with pytest.raises(CannotStart, match="PACA_API_KEYS"):
        ApiKeys(tmp_path / "keys")


def test_a_byte_order_mark_is_not_part_of_the_first_key(tmp_path):
    (tmp_path / "keys").write_text("first-key\nsecond\n", "utf-8-sig")
    ApiKeys(tmp_path / "keys").check("/classify", Headers({"X-API-Key": "first-key"}))


def test_a_reload_takes_new_keys_and_keeps_the_old_ones_where_the_file_is_no_good(keys, tmp_path):
    (tmp_path / "keys").write_text("third\n", "utf-8")
    keys.reload()
    keys.check("/classify", Headers({"X-API-Key": "third"}))
    with pytest.raises(Unauthorized):
        keys.check("/classify", Headers({"X-API-Key": "first-key"}))
    (tmp_path / "keys").unlink()
    with pytest.raises(CannotStart):
        keys.reload()
    keys.check("/classify", Headers({"X-API-Key": "third"}))
