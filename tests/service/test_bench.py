"""`paca bench` and `paca tune`: they measure what they say, and the load generator counts what the server
really answered."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import pytest

from service import bench
from service.bench import Measured, Setting
from service.engine import Device
from service.errors import PacaError
from service.load import closed_loop, request_bytes


def test_every_step_of_a_request_is_measured(tiny_repository: Path) -> None:
    found = bench.steps(
        tiny_repository / "tiny" / "1" / "model.onnx", Device("cpu", threads=1), bench.sample(), seconds=0.1
    )
    assert list(found) == ["decode and preprocess", "run, batch 1", "run, batch 8, per picture"]
    assert all(0 < ms < 10_000 for ms in found.values())


def test_tune_measures_each_setting_through_the_predictor(tiny_repository: Path) -> None:
    settings = [Setting(1, 1, 1), Setting(2, 1, 4)]
    found = list(
        bench.tune(tiny_repository / "tiny" / "1" / "model.onnx", bench.sample((48, 64)), 0.3, settings)
    )
    assert [m.setting for m in found] == settings
    assert all(m.rate > 0 and m.p50 > 0 for m in found)


def test_the_best_setting_depends_on_the_goal() -> None:
    fast, many = Measured(Setting(1, 2, 1), rate=10, p50=5), Measured(Setting(2, 1, 8), rate=30, p50=9)
    assert bench.best([fast, many], "latency") is fast
    assert bench.best([fast, many], "throughput") is many
    assert bench.environment(many.setting) == "PACA_INSTANCES=2\nPACA_THREADS=1\nPACA_MAX_BATCH=8\n"


def test_candidates_never_ask_for_more_cores_than_there_are() -> None:
    assert all(s.instances * s.threads <= 6 for s in bench.candidates(6))
    assert bench.candidates(1) == [Setting(1, 1, 1), Setting(1, 1, 4), Setting(1, 1, 8)]


@pytest.mark.parametrize("url", ["https://example.org/classify", "file:///etc/passwd"])
def test_only_plain_http_is_load_tested(url: str) -> None:
    with pytest.raises(PacaError, match="no http"):
        request_bytes(url, b"", "image/png")


SIZED = b"\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = (
    b"\r\nTransfer-Encoding: chunked\r\n\r\n2;note=x\r\nok\r\n1A\r\n"
    + b"o" * 26
    + b"\r\n0\r\nTrailer: x\r\n\r\n"
)


@pytest.mark.parametrize("body", [SIZED, CHUNKED], ids=["sized", "chunked"])
def test_the_generator_counts_answers_by_status_and_reports_percentiles(body: bytes) -> None:
    served = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        while await reader.readuntil(b"\r\n\r\n"):
            await reader.readexactly(3)
            served += 1
            status = b"503 Busy" if served % 4 == 0 else b"200 OK"
            writer.write(b"HTTP/1.1 " + status + body)

    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        host, _, request = request_bytes(f"http://127.0.0.1:{port}/classify?top_k=1", b"abc", "image/png")
        assert b"POST /classify?top_k=1 HTTP/1.1" in request
        found = await closed_loop(host, port, request, connections=3, seconds=0.3, warm_up=8)
        server.close()
        assert sum(found.statuses.values()) == len(found.latencies) == served - 8
        assert found.statuses[503] == pytest.approx(len(found.latencies) / 4, abs=4)
        assert found.percentile(0.5) <= found.percentile(0.99)

    asyncio.run(main())


def test_a_server_that_hangs_up_is_counted_not_raised() -> None:
    async def main() -> None:
        async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        found = await closed_loop(
            "127.0.0.1", port, b"POST / HTTP/1.1\r\n\r\n", connections=2, seconds=0.1, warm_up=0
        )
        server.close()
        assert found.failures > 0
        assert math.isnan(found.percentile(0.5))

    asyncio.run(main())
