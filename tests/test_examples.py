"""The examples run as they stand, against a real server."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import util
from pathlib import Path

import pytest

from tests.serving import served

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def server(tiny_repository):
    """The address of `paca serve` with the tiny model."""
    with served(tiny_repository) as serving:
        yield serving.url


@pytest.fixture
def run(server, jpeg, tmp_path):
    """Runs a command beside photo.jpg; returns what it printed."""
    (tmp_path / "photo.jpg").write_bytes(jpeg)

    def command(*words: str) -> str:
        environment = {**os.environ, "PACA_URL": server}
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return command


def node() -> str:
    """Node of the system, or the one that Playwright brings."""
    if found := shutil.which("node"):
        return found
    from playwright._impl._driver import compute_driver_executable

    return str(compute_driver_executable()[0])


def client_module():
    spec = util.spec_from_file_location("paca_client", EXAMPLES / "paca_client.py")
    assert spec
    assert spec.loader
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_curl_in_every_form(run, tmp_path):
    raw, multipart, from_json, several, *_ = [
        json.loads(line)
        for line in run("sh", str(EXAMPLES / "requests.sh"), "photo.jpg").splitlines()
        if line
    ]
    assert raw["predictions"] == multipart["predictions"] == from_json["predictions"]
    for item in several[
        "results"
    ]:  # which may have shared a run: equal but for the last digits of scores and logits, see docs/api.md
        for found, alone in zip(item["predictions"][:3], raw["predictions"], strict=True):
            assert found == alone | {
                name: pytest.approx(alone[name], abs=2e-6) for name in ("score", "logit")
            }
    assert json.loads((tmp_path / "explanation.json").read_text())["explanations"]
    assert (tmp_path / "overlay.png").read_bytes().startswith(b"\x89PNG")
    assert b"<html" in (tmp_path / "report.html").read_bytes()


def test_python_as_a_program(run):
    assert "photo.jpg: " in run(sys.executable, str(EXAMPLES / "paca_client.py"), "photo.jpg")


def test_javascript(run):
    printed = run(node(), str(EXAMPLES / "classify.mjs"), "photo.jpg")
    assert printed.count(" %  ") == 3
    assert "overlay: " in printed


def test_the_triton_client(run):
    assert "(class " in run(sys.executable, str(EXAMPLES / "oip_client.py"), "tiny", "photo.jpg")


def test_the_python_of_the_api_document(run, server, tmp_path):
    (code,) = re.findall(
        r"```python\n(.*?)```", (EXAMPLES.parent / "docs" / "api.md").read_text("utf-8"), re.S
    )
    (tmp_path / "example.py").write_text(code.replace("http://localhost:8000", server))
    printed = run(sys.executable, "example.py")
    assert "most evidence at x" in printed
    assert printed.count("is the strongest in") == 3


def test_python_as_a_library(server, jpeg):
    paca_client = client_module()
    with paca_client.Paca(server) as paca:
        best = paca.classify(jpeg, top_k=2)["predictions"]
        good, bad = paca.classify_all([jpeg, b"no picture"], top_k=2)
        assert len(best) == 2
        assert good["predictions"] == best
        assert bad["status"] == 415
        assert paca.explain(jpeg)["explanations"]
        assert paca.overlay(jpeg, format="png").startswith(b"\x89PNG")
        with pytest.raises(paca_client.Refused, match="top_k") as refusal:
            paca.classify(jpeg, top_k=0)
        assert refusal.value.status == 422


def test_the_python_client_waits_as_long_as_it_is_told_and_asks_again(jpeg):
    asked: list[float] = []

    class Busy(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(time.monotonic())
            status, body = (503, b'{"detail": "busy"}') if len(asked) == 1 else (200, b'{"predictions": []}')
            self.send_response(status)
            self.send_header("Retry-After", "1")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    paca_client = client_module()
    with HTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        with paca_client.Paca(url) as paca:
            assert paca.classify(jpeg) == {"predictions": []}
        assert asked[1] - asked[0] >= 1
        asked.clear()
        with paca_client.Paca(url, patience=0.5) as paca, pytest.raises(paca_client.Refused, match="busy"):
            paca.classify(jpeg)
        server.shutdown()
