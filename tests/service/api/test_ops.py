"""Health, models, metrics, and the paths around them."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from typing import cast

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.api.app import create_app
from service.api.state import State, state
from service.errors import CannotStart
from service.settings import Settings
from service.version import this_build
from tests.service.api.conftest import opened


def series(client) -> dict[str, float]:
    lines = [line for line in client.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def shared_by(client: TestClient) -> State:
    """What the handlers of the client's app share."""
    return state(cast(FastAPI, client.app))


def test_alive_and_ready_are_two_questions(client):
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready", "failed": [], "loading": []}


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
        shared_by(client).registry.drain()
        assert client.get("/readyz").status_code == 503
        answer = client.post("/classify", content=jpeg)
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")


def test_models_say_what_is_loaded(client):
    listed = client.get("/models").json()
    (model,) = listed["models"]
    assert (listed["failed"], listed["loading"]) == ([], [])
    assert (model["name"], model["versions"], model["default"]) == ("tiny", ["1"], True)
    assert (model["provider"], model["precision"]) == ("cpu", "fp32")
    assert model["precision_reason"] == "not int8: there is no model.int8.onnx"
    assert model["labels"] == ["red", "green", "blue", "grey"]
    assert model["input"] == {"kind": "uint8", "size": [32, 32], "dynamic_size": False, "resize": "stretch"}
    assert client.get("/models/tiny").json() == model
    assert client.get("/models/other").status_code == 404


def test_a_model_that_failed_is_listed_and_leaves_the_server_ready(repository, jpeg):
    (repository / "broken" / "3").mkdir(parents=True)
    (repository / "broken" / "3" / "model.onnx").write_bytes(b"no model")
    with opened(Settings(models=repository)) as client:
        wait_for(lambda: client.get("/readyz").json()["failed"])
        for path in ("/readyz", "/models"):
            (failed,) = client.get(path).json()["failed"]
            assert (failed["name"], failed["version"], failed["kind"]) == ("broken", "3", "bad-artifact")
            assert failed["message"]
            assert failed["retry_in_seconds"] is None
        assert client.post("/classify", content=jpeg).status_code == 200


def test_the_version_names_the_program_and_its_runtime(client):
    build = this_build()
    assert client.get("/version").json() == {
        "version": build.version,
        "commit": build.commit,
        "onnxruntime": build.onnxruntime,
        "providers": list(build.providers),
    }
    (info,) = [name for name in series(client) if name.startswith("paca_build_info")]
    assert f'version="{build.version}"' in info


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
        assert isinstance(shared_by(client).failure, CannotStart)
        assert client.get("/readyz").status_code == 503


def test_every_endpoint_counts_under_its_own_name(client):
    counted = {name for name in series(client) if name.startswith("paca_requests_total")}
    for path in client.get("/openapi.json").json()["paths"]:
        assert any(f'endpoint="{path}"' in name for name in counted), path
    assert 'paca_requests_total{code="404",endpoint="other"}' in counted


def test_both_queues_of_a_model_are_counted(open_app, jpeg):
    with open_app() as client:
        client.post("/explain?method=focus&target=0&target=1", content=jpeg)
        now = series(client)
    assert now['paca_inferred_total{model="tiny",queue="pictures"}'] == 1
    assert now['paca_inferred_total{model="tiny",queue="gradients"}'] == 2
    for what in ("dropped", "expired", "retried", "engine_failures", "queue_full"):
        for queue in ("pictures", "gradients"):
            assert now[f'paca_{what}_total{{model="tiny",queue="{queue}"}}'] == 0
    assert now['paca_queue_depth{model="tiny",queue="gradients"}'] == 0


def test_no_picture_is_lost_from_the_counters_when_a_version_is_replaced(repository, jpeg):
    counted = 'paca_inferred_total{model="tiny",queue="pictures"}'
    with opened(Settings(models=repository)) as client:
        registry = shared_by(client).registry
        sent = 0
        for version in ("2", "3"):
            shutil.copytree(repository / "tiny" / "1", repository / "tiny" / version)
            for _ in range(3):
                client.post("/classify", content=jpeg)
                sent += 1
            client.portal.call(registry.reload)
        shutil.rmtree(repository / "tiny" / "2")
        client.post("/classify?model=tiny:2", content=jpeg)
        client.portal.call(registry.reload)
        assert series(client)[counted] == sent + 1
        wait_for(lambda: not registry._retired)
        assert series(client)[counted] == sent + 1


def test_a_dropped_model_leaves_no_queue(repository, jpeg):
    shutil.copytree(repository / "tiny", repository / "other")
    with opened(Settings(models=repository)) as client:
        wait_for(lambda: len(client.get("/models").json()["models"]) == 2)
        shared = shared_by(client)
        shared.metrics.queue_depth.labels("other", "pictures").set(7)
        shutil.rmtree(repository / "other")
        client.portal.call(shared.registry.reload)
        assert series(client)['paca_queue_depth{model="other",queue="pictures"}'] == 0


def test_metrics_that_cannot_be_read_once_come_back_and_the_server_still_ends_well(
    open_app, monkeypatch, caplog
):
    with open_app() as client:
        shared, closed = shared_by(client), []
        close = shared.registry.close

        async def closing() -> None:
            closed.append(True)
            await close()

        def full() -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(shared.registry, "close", closing)
        with monkeypatch.context() as broken:
            broken.setattr(shared.registry, "models", full)
            assert client.get("/metrics").status_code == 200
            assert client.get("/metrics").status_code == 200
        assert caplog.text.count("metrics cannot be brought up to date") == 1
        shared.registry.drain()
        wait_for(lambda: b"paca_ready 0.0" in shared.metrics.render()[0])
    assert closed
