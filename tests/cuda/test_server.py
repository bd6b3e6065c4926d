"""What callers and operators see when the device of a running server fails: through a real server, over the
real CUDA provider, with faults that the kit injects."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from service.errors import DeviceLost
from service.repository import embedded
from tests.cuda.conftest import inert_environment
from tests.serving import Serving, alive, served

SERVE = (sys.executable, str(Path(__file__).with_name("serve_inert.py")), "serve")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository with the embedded classifier that a test may change."""
    return Path(shutil.copytree(embedded() / "imagenette", tmp_path / "models" / "imagenette")).parent


@pytest.fixture
def inert_server(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Serving]]:
    """Starts `paca serve` over the kit; what it says lies in tmp_path / "said"."""
    for name, value in inert_environment().items():
        monkeypatch.setenv(name, value)
    with ExitStack() as stack, (tmp_path / "said").open("wb") as said:

        def start(**settings: object) -> Serving:
            settings = {"provider": "cuda", "max_batch": 4, **settings}
            return stack.enter_context(served(models, SERVE, stderr=said, **settings))

        yield start


def get(server: Serving, path: str, body: bytes | None = None) -> tuple[int, dict, dict]:
    """(status, headers, JSON) of a request; status 0 where nothing listens."""
    try:
        request = urllib.request.Request(server.url + path, body, {"Content-Type": "image/jpeg"})  # noqa: S310
        with urllib.request.urlopen(request, timeout=20) as reply:  # noqa: S310
            return reply.status, dict(reply.headers), json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), json.loads(error.read())
    except OSError:
        return 0, {}, {}


def within(seconds: float, happened: Callable[[], Any]) -> Any:
    """What `happened` gives once it is true, or at the end of that time."""
    until = time.monotonic() + seconds
    while not (found := happened()) and time.monotonic() < until:
        time.sleep(0.05)
    return found


def test_a_server_on_cuda_answers_and_says_what_runs(
    inert_server: Callable[..., Serving], jpeg: bytes
) -> None:
    server = inert_server()
    assert [model["provider"] for model in get(server, "/models")[2]["models"]] == ["cuda"]
    assert get(server, "/classify", jpeg)[0] == 200
    assert get(server, "/explain?method=focus", jpeg)[0] == 200
    assert get(server, "/readyz")[0] == 200


@pytest.mark.parametrize("provider", ["cuda", "auto"])
def test_a_device_that_fails_for_good_is_said_and_ends_the_process(
    provider: str, inert_server: Callable[..., Serving], jpeg: bytes, tmp_path: Path
) -> None:
    server = inert_server(provider=provider)
    assert get(server, "/classify", jpeg)[0] == 200
    os.kill(server.process.pid, signal.SIGUSR1)
    statuses = []
    for path, body in (("/classify", jpeg), ("/explain", jpeg), ("/readyz", None)):
        status, headers, problem = get(server, path, body)
        statuses.append(status)
        assert problem["type"] == "urn:paca:problem:device-lost"
        assert int(headers["retry-after"]) >= 5
    assert statuses == [503, 503, 503]
    _, _, listed = get(server, "/models")
    assert listed["models"] == []  # never cpu, and nothing that does not run
    assert [failed["kind"] for failed in listed["failed"]] == ["device-lost"]
    assert get(server, "/healthz")[0] == 200
    assert server.process.wait(20) == DeviceLost.exit_code
    last = (tmp_path / "said").read_text().strip().splitlines()[-1]
    assert last.startswith("paca: the cuda device failed for good")


def test_a_failure_in_the_gradients_ends_the_process_too(
    inert_server: Callable[..., Serving], jpeg: bytes
) -> None:
    server = inert_server()
    assert get(server, "/explain?method=focus", jpeg)[0] == 200
    os.kill(server.process.pid, signal.SIGUSR1)
    assert get(server, "/explain?method=focus", jpeg)[0] == 503
    assert server.process.wait(20) == DeviceLost.exit_code


def test_a_worker_whose_device_failed_is_replaced_while_the_other_answers(
    inert_server: Callable[..., Serving], jpeg: bytes, tmp_path: Path
) -> None:
    server = inert_server(workers=2)
    said = tmp_path / "said"
    assert within(120, lambda: said.read_text().count("loaded model imagenette") == 2)
    first, second = server.workers()
    time.sleep(1)  # from loaded to listening
    os.kill(first, signal.SIGUSR1)
    assert within(20, lambda: get(server, "/classify", jpeg)[0] and not alive(first))
    answers = [get(server, "/classify", jpeg)[0] for _ in range(5)]
    assert answers == [200] * 5
    assert within(60, lambda: len(server.workers()) == 2)
    assert within(120, lambda: said.read_text().count("loaded model imagenette") == 3)
    assert second in server.workers()
    assert server.process.poll() is None


def test_short_memory_costs_a_new_version_not_those_that_serve(
    inert_server: Callable[..., Serving], models: Path, jpeg: bytes
) -> None:
    server = inert_server(watch_models=0.3)
    os.kill(server.process.pid, signal.SIGUSR2)
    shutil.copytree(models / "imagenette" / "1", models / "2")
    (models / "2").rename(models / "imagenette" / "2")  # whole at once: the watcher must see no half file
    failed = within(60, lambda: get(server, "/models")[2]["failed"])
    assert failed
    assert [(version["version"], version["kind"]) for version in failed] == [("2", "engine-failure")]
    for _ in range(3):  # a run allocates nothing
        status, _, answer = get(server, "/classify", jpeg)
        assert (status, answer["model_version"]) == (200, "1")
    assert get(server, "/explain", jpeg)[0] == 200
    assert get(server, "/readyz")[0] == 200
    os.kill(server.process.pid, signal.SIGUSR2)

    def newest() -> bool:
        return get(server, "/classify", jpeg)[2].get("model_version") == "2"

    assert within(60, newest)  # tried again: the file was not at fault
