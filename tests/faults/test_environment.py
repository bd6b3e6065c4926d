"""A full disk, a log nobody can write, an engine that fails, a clock that jumps: the server goes on or says
why not."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from service.api.app import create_app
from service.errors import EngineFailure
from service.settings import Settings
from tests.serving import served

SERVICE = Path(__file__).parents[2] / "service"


def test_a_full_log_and_no_temporary_folder_stop_nothing(tiny_repository, jpeg):
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    environment = {
        **os.environ,
        "PACA_MODELS": str(tiny_repository),
        "PACA_PORT": "0",
        "TMPDIR": "/nonexistent",
        "PYTHONUNBUFFERED": "1",
    }
    with open("/dev/full", "wb") as full:
        process = subprocess.Popen(
            [sys.executable, "-m", "service", "serve"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
        )
        try:
            url = process.stdout.readline().split()[-1]
            answers = [httpx.post(f"{url}classify", content=jpeg).status_code for _ in range(3)]
            answers.append(
                httpx.post(f"{url}classify", files={"file": jpeg * 60}).status_code
            )  # far beyond what a spooling parser keeps in memory
        finally:
            process.terminate()
            code = process.wait(30)
    assert answers == [200, 200, 200, 200]
    assert code == 0


def test_an_engine_that_fails_is_503_and_recovers(tiny_repository, jpeg, monkeypatch):
    import time

    from starlette.testclient import TestClient

    app = create_app(Settings(models=tiny_repository))
    with TestClient(app) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.02)
        engine = app.state.paca.registry.get()._engine

        def fail(*_, **__):
            raise EngineFailure("the engine could not run this batch; try again")

        with monkeypatch.context() as broken:
            broken.setattr(engine, "run", fail)
            answer = client.post("/classify", content=jpeg)
            assert (answer.status_code, answer.json()["type"]) == (503, "urn:paca:problem:engine-failure")
            assert "retry-after" in answer.headers
            assert client.get("/healthz").status_code == 200
        assert client.post("/classify", content=jpeg).status_code == 200


def test_no_decision_depends_on_the_wall_clock():
    """Deadlines, waits and timings use the monotonic clock, so a jump of the time of day changes nothing;
    only log lines and the answer log's entries tell the time."""
    clocks = {("time", "time"), ("datetime", "now"), ("datetime", "utcnow")}
    nodes = [
        (file.name, node)
        for file in SERVICE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
    ]
    calls = [
        (name, node.value.id, node.attr)
        for name, node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    ]
    told = [("answer_log.py", "datetime", "now")]
    assert [call for call in calls if call[1:] in clocks] == told


def test_a_taken_port_is_one_line_and_exit_code_1(tiny_repository):
    with served(tiny_repository) as serving:
        environment = {**os.environ, "PACA_MODELS": str(tiny_repository), "PACA_PORT": str(serving.port)}
        done = subprocess.run(
            [sys.executable, "-m", "service", "serve"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1
    assert f"port {serving.port}" in done.stderr
    assert "Traceback" not in done.stderr
