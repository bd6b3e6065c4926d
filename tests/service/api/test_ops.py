"""Health, models, metrics, and the paths around them."""

from __future__ import annotations

import asyncio

import pytest
from starlette.testclient import TestClient

from service.api.app import create_app
from service.errors import CannotStart
from service.settings import Settings


def series(client) -> dict[str, float]:
    lines = [line for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_alive_and_ready_are_two_questions(client):
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready"}


def test_not_ready_while_loading_says_why_and_answers_at_once(tiny_repository, jpeg):
    app = create_app(Settings(models=tiny_repository))  # its lifespan has not begun: nothing is loaded
    client = TestClient(app)
    answer = client.get("/readyz")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "loading" in answer.json()["detail"]
    assert client.get("/healthz").status_code == 200
    assert client.post("/classify", content=jpeg).status_code == 503
    assert client.get("/v2/health/ready").status_code == 503


def test_draining_is_not_ready_but_still_answers_and_asks_to_go_elsewhere(open_app, jpeg):
    with open_app() as client:
        client.app.state.paca.registry.drain()
        assert client.get("/readyz").status_code == 503
        answer = client.post("/classify", content=jpeg)
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")


def test_models_say_what_is_loaded(client):
    (model,) = client.get("/models").json()["models"]
    assert (model["name"], model["versions"], model["default"]) == ("tiny", ["1"], True)
    assert (model["provider"], model["precision"]) == ("cpu", "fp32")
    assert model["labels"] == ["red", "green", "blue", "grey"]
    assert model["input"] == {"kind": "uint8", "size": [32, 32], "dynamic_size": False, "resize": "stretch"}
    assert client.get("/models/tiny").json() == model
    assert client.get("/models/other").status_code == 404


def test_head_answers_like_get_without_a_body(client):
    head, get = client.head("/healthz"), client.get("/healthz")
    assert (head.status_code, head.headers["content-length"]) == (200, get.headers["content-length"])


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/classify", "POST"), ("DELETE", "/healthz", "GET"), ("POST", "/models", "GET")],
)
def test_a_wrong_method_is_405_and_says_the_right_one(client, method, path, allowed):
    answer = client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "path", ["/nothing", "/classify/", "/..%2f..%2fetc/passwd", "/%00", "/style.css/../app.py"]
)
def test_an_unknown_path_is_a_404_problem(client, path):
    answer = client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


def test_a_prefix_is_taken_off_whether_the_proxy_did_or_not(open_app, jpeg):
    with open_app(root_path="/vision/") as client:
        assert client.get("/vision/readyz").status_code == 200
        assert client.post("/vision/classify", content=jpeg).status_code == 200
        assert client.post("/classify", content=jpeg).status_code == 200
        assert client.get("/vision/v2/models/x").json().keys() == {"error"}
        assert client.get("/openapi.json").json()["servers"] == [{"url": "/vision"}]


def test_keys_guard_everything_but_health_and_metrics(open_app, jpeg, tmp_path):
    (tmp_path / "keys").write_text("secret\n")
    with open_app(api_keys=tmp_path / "keys") as client:
        refused = client.post("/classify", content=jpeg)
        assert (refused.status_code, refused.headers["content-type"]) == (401, "application/problem+json")
        assert "Bearer" in refused.headers["www-authenticate"]
        assert client.get("/v2/models").json().keys() == {"error"}
        assert (
            client.post("/classify", content=jpeg, headers={"Authorization": "Bearer secret"}).status_code
            == 200
        )
        assert client.get("/metrics").status_code == 200


def test_other_origins_are_not_let_in_unless_named(client, open_app):
    preflight = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in client.options("/classify", headers=preflight).headers
    with open_app(cors_origins="https://shop.example") as open_client:
        assert (
            open_client.options("/classify", headers=preflight).headers["access-control-allow-origin"]
            == "https://shop.example"
        )
        assert (
            "access-control-allow-origin"
            not in open_client.get("/healthz", headers={"Origin": "https://other.example"}).headers
        )


def test_what_is_switched_off_is_not_there(open_app):
    with open_app(metrics=False, docs=False, demo=False) as client:
        assert [client.get(path).status_code for path in ("/metrics", "/docs", "/openapi.json", "/")] == [
            404
        ] * 4


def test_metrics_count_requests_by_route_and_status(open_app, jpeg):
    with open_app() as client:
        client.post("/classify", content=jpeg)
        client.post("/classify", content=b"text", headers={"Content-Type": "text/plain"})
        now = series(client)
    assert now['paca_requests_total{code="200",endpoint="/classify"}'] == 1
    assert now['paca_requests_total{code="415",endpoint="/classify"}'] == 1
    assert now['paca_rejected_total{reason="not-an-image"}'] == 1
    assert now['paca_inference_seconds_count{model="tiny"}'] == 1
    assert now['paca_request_seconds_count{endpoint="/classify"}'] == 2
    assert now["paca_ready"] == 1
    (info,) = [name for name in now if name.startswith("paca_model_info")]
    assert 'provider="cpu"' in info


def test_no_request_can_add_a_series(client, jpeg):
    client.post("/explain", content=jpeg)
    before = set(series(client))
    for i in range(200):
        client.request(
            f"METHOD{i}", f"/path/{i}", headers={"X-Request-ID": f"r{i}", "User-Agent": f"agent{i}"}
        )
        client.get(f"/models/{i}")
        client.get(f"/v2/models/{i}/versions/{i}")
        client.post(f"/classify?model=m{i}", content=jpeg)
    assert set(series(client)) == before


def test_a_repository_without_a_model_is_said_and_never_ready(tmp_path):
    with TestClient(create_app(Settings(models=tmp_path))) as client:
        asyncio.run(asyncio.sleep(0.2))
        assert isinstance(client.app.state.paca.failure, CannotStart)
        assert client.get("/readyz").status_code == 503
