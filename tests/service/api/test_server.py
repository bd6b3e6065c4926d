"""Starting, stopping and reloading a real server process."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from tests.serving import alive


def test_the_ready_line_names_the_page_and_a_command_that_works(serving, tmp_path, jpeg):
    (tmp_path / "photo.jpg").write_bytes(jpeg)
    assert serving.printed[0].strip().endswith(f"{serving.url}/")
    command = serving.printed[1].removeprefix("Try: ").strip()
    done = subprocess.run(command.split(), cwd=tmp_path, capture_output=True, timeout=30, check=True)
    assert b'"predictions"' in done.stdout


def test_after_sigterm_not_ready_comes_first_and_every_accepted_request_is_answered(start, jpeg):
    with start() as serving, httpx.Client(base_url=serving.url, timeout=30) as client:
        with socket.create_connection(("127.0.0.1", serving.port), timeout=30) as slow:
            slow.sendall(
                b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(jpeg) + jpeg[:1000]
            )
            time.sleep(0.3)
            serving.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            assert client.get("/readyz").status_code == 503
            assert client.post("/classify", content=jpeg).headers["connection"] == "close"
            time.sleep(3)
            with pytest.raises(httpx.ConnectError):
                client.get("/healthz")
            slow.sendall(jpeg[1000:])
            assert slow.recv(65536).startswith(b"HTTP/1.1 200")
        assert serving.process.wait(30) == 0


def test_metrics_of_several_workers_are_one(start, jpeg):
    with start(workers=2) as serving:
        for _ in range(12):
            assert httpx.post(f"{serving.url}/classify", content=jpeg).status_code == 200
        counted = 'paca_requests_total{code="200",endpoint="/classify"} 12.0'
        until = time.monotonic() + 10  # a worker counts a request just after its answer has left
        while counted not in httpx.get(f"{serving.url}/metrics").text:
            assert time.monotonic() < until
            time.sleep(0.1)
        serving.process.send_signal(signal.SIGTERM)
        assert serving.process.wait(30) == 0


def test_a_worker_takes_no_request_before_its_models_are_loaded(start, jpeg):
    with start(workers=3) as serving:  # the first is ready, the others still load
        for _ in range(30):
            assert (
                httpx.post(f"{serving.url}/classify", content=jpeg).status_code == 200
            )  # each on a connection of its own
            time.sleep(0.03)


def test_workers_do_not_outlive_a_supervisor_that_was_killed(start):
    with start(workers=2) as serving:
        workers = serving.workers()
        serving.process.kill()
        until = time.monotonic() + 20
        while any(alive(pid) for pid in workers):
            assert time.monotonic() < until
            time.sleep(0.2)


def test_sighup_loads_a_new_version_without_a_restart(repository, start_in, jpeg):
    with start_in(repository) as serving, httpx.Client(base_url=serving.url, timeout=30) as client:
        shutil.copytree(repository / "tiny" / "1", repository / "tiny" / "2")
        serving.process.send_signal(signal.SIGHUP)
        until = time.monotonic() + 30
        while client.post("/classify", content=jpeg).json()["model_version"] != "2":
            assert time.monotonic() < until
            time.sleep(0.1)
        assert client.post("/classify?model=tiny:1", content=jpeg).json()["model_version"] == "1"


@pytest.mark.parametrize("workers", [1, 2])
def test_sighup_reads_the_api_keys_again(start, tmp_path, workers):
    keys = tmp_path / "keys"
    keys.write_text("old\n")
    with start(workers=workers, api_keys=keys) as serving:

        def status(key: str) -> int:
            return httpx.get(f"{serving.url}/models", headers={"X-API-Key": key}).status_code

        assert (status("old"), status("new")) == (200, 401)
        keys.write_text("new\n")
        serving.process.send_signal(signal.SIGHUP)
        until = time.monotonic() + 60
        while not all((status("new"), status("old")) == (200, 401) for _ in range(6)):  # every worker
            assert time.monotonic() < until
            time.sleep(0.2)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_that_cannot_start_says_why_and_exits_with_1(tmp_path, workers):
    environment = {**os.environ, "PACA_MODELS": str(tmp_path), "PACA_PORT": "0", "PACA_WORKERS": workers}
    done = subprocess.run(
        [sys.executable, "-m", "service", "serve"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "no model could be loaded" in done.stderr
    assert "Traceback" not in done.stderr
