"""Hostile HTTP on raw sockets: everything a client can send or hold is bounded, and is told so where it can
be told."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import uvicorn

from service.api import protocol

HOST = b"Host: x\r\n"


def exchange(port: int, *pieces: bytes, pause: float = 0.0, patience: float = 25.0) -> tuple[bytes, float]:
    """(all that came back until the server closed, seconds it took)."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=patience) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause)
        except OSError:
            pass  # the server has heard enough
        answer = b""
        try:
            while piece := connection.recv(65536):
                answer += piece
        except ConnectionResetError:
            pass
    return answer, time.monotonic() - began


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def request(
    method: bytes = b"GET", path: bytes = b"/healthz", headers: bytes = HOST, body: bytes = b""
) -> bytes:
    return method + b" " + path + b" HTTP/1.1\r\n" + headers + b"\r\n" + body


HOSTILE = {
    "garbage": (b"\x00\x01 garbage\r\n\r\n", 400),
    "a TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "version 9.9": (b"GET / HTTP/9.9\r\n\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "unknown method": (b"BREW /coffee HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "no Host": (request(headers=b""), 400),
    "two Hosts": (request(headers=HOST * 2), 400),
    "NUL in the path": (request(path=b"/\x00"), 400),
    "CONNECT": (request(b"CONNECT", b"a:1"), 400),
    "space in a header name": (request(headers=HOST + b"X Y: z\r\n"), 400),
    "two lengths": (
        request(b"POST", b"/classify", HOST + b"Content-Length: 5\r\nContent-Length: 6\r\n", b"hello"),
        400,
    ),
    "negative length": (request(b"POST", b"/classify", HOST + b"Content-Length: -5\r\n", b"hello"), 400),
    "length that is no number": (
        request(b"POST", b"/classify", HOST + b"Content-Length: 5x\r\n", b"hello"),
        400,
    ),
    "length and chunks": (
        request(
            b"POST", b"/classify", HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"
        ),
        400,
    ),
    "bad chunk size": (
        request(b"POST", b"/classify", HOST + b"Transfer-Encoding: chunked\r\n", b"zz\r\nhello"),
        400,
    ),
    "long address": (request(path=b"/" + b"a" * 9_000), 414),
    "huge address": (request(path=b"/" + b"a" * 900_000), 414),
    "large header": (request(headers=HOST + b"X: " + b"a" * 17_000 + b"\r\n"), 431),
    "huge header": (request(headers=HOST + b"X: " + b"a" * 2_000_000 + b"\r\n"), 431),
    "many headers": (request(headers=HOST + b"X: a\r\n" * 20_000), 431),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_acceptable_request_is_refused_with_a_problem_and_closed(serving, case):
    sent, status = HOSTILE[case]
    answer, seconds = exchange(serving.port, sent)
    assert statuses(answer) == [status]
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    assert b"Connection: close" in head
    assert json.loads(body)["status"] == status
    assert seconds < 5


def test_a_head_as_large_as_allowed_is_answered(serving):
    near = HOST + b"Connection: close\r\nX: " + b"a" * (protocol.HEAD_BYTES - 100) + b"\r\n"
    assert statuses(exchange(serving.port, request(path=b"/healthz?" + b"a" * 8_000, headers=near))[0]) == [
        200
    ]


def test_slow_and_silent_clients_are_closed_at_their_deadline(serving, jpeg):
    started = request(
        b"POST", b"/classify", HOST + b"Content-Length: %d\r\nConnection: close\r\n" % len(jpeg)
    )
    with ThreadPoolExecutor(8) as pool:
        silent = pool.submit(exchange, serving.port)
        half = pool.submit(exchange, serving.port, b"GET /heal")
        drip = pool.submit(exchange, serving.port, b"GET / HTTP/1.1\r\n", *[b"X: y\r\n"] * 60, pause=0.2)
        kept = pool.submit(exchange, serving.port, request())
        body = pool.submit(exchange, serving.port, started, *[jpeg[i : i + 1] for i in range(60)], pause=0.3)
        rest = pool.submit(
            exchange,
            serving.port,
            request(headers=HOST + b"Content-Length: 1000\r\n"),
            *[b"x"] * 70,
            pause=0.3,
        )
        assert silent.result()[0] == b""
        assert statuses(half.result()[0]) == [408]
        assert statuses(drip.result()[0]) == [408]
        assert statuses(kept.result()[0]) == [200]
        assert statuses(body.result()[0]) == [408]
        assert statuses(rest.result()[0]) == [200]
        assert all(4 < f.result()[1] < 9 for f in (silent, half, kept))
        assert all(9 < f.result()[1] < 16 for f in (body,))


def test_good_requests_are_served_while_slow_clients_are_held(serving, http, jpeg):
    held = []
    try:
        for i in range(128):
            connection = socket.create_connection(("127.0.0.1", serving.port))
            connection.sendall(
                b"GET /heal"
                if i % 2
                else request(b"POST", b"/classify", HOST + b"Content-Length: 9999\r\n", b"x")
            )
            held.append(connection)
        assert [http.post("/classify", content=jpeg).status_code for _ in range(20)] == [200] * 20
    finally:
        for connection in held:
            connection.close()


def test_a_body_may_come_in_chunks_of_one_byte(serving, jpeg):
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in jpeg) + b"0\r\n\r\n"
    answer, _ = exchange(
        serving.port,
        request(b"POST", b"/classify", HOST + b"Transfer-Encoding: chunked\r\nConnection: close\r\n", chunks),
    )
    assert statuses(answer) == [200]


def test_a_body_too_large_is_refused_before_it_is_sent(serving):
    headers = HOST + b"Expect: 100-continue\r\nContent-Length: 999999999999\r\nConnection: close\r\n"
    answer, seconds = exchange(serving.port, request(b"POST", b"/classify", headers))
    assert statuses(answer) == [413]
    assert seconds < 2


def test_a_client_that_waits_for_100_continue_gets_it(serving, jpeg):
    headers = HOST + b"Expect: 100-continue\r\nContent-Length: %d\r\nConnection: close\r\n" % len(jpeg)
    assert statuses(exchange(serving.port, request(b"POST", b"/classify", headers), jpeg, pause=0.2)[0]) == [
        100,
        200,
    ]


def test_a_wish_for_http2_is_ignored_and_the_body_kept(serving, jpeg):
    headers = (
        HOST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: "
        b"AAMAAABkAAQ\r\nContent-Length: %d\r\n" % len(jpeg)
    )
    first = request(b"POST", b"/classify", headers, jpeg)
    answer, _ = exchange(serving.port, first + request(headers=HOST + b"Connection: close\r\n"))
    assert statuses(answer) == [200, 200]


def test_pipelined_requests_are_answered_in_order(serving, jpeg):
    post = request(b"POST", b"/classify", HOST + b"Content-Length: %d\r\n" % len(jpeg), jpeg)
    answer, _ = exchange(
        serving.port, post + request() + request(path=b"/nothing", headers=HOST + b"Connection: close\r\n")
    )
    assert statuses(answer) == [200, 200, 404]


def test_garbage_after_a_request_does_not_cost_its_answer(serving, jpeg):
    post = request(b"POST", b"/classify", HOST + b"Content-Length: %d\r\n" % len(jpeg), jpeg)
    assert statuses(exchange(serving.port, post + b"garbage\r\n\r\n")[0]) == [200]


def test_http_1_0_is_answered_and_closed(serving):
    answer, seconds = exchange(serving.port, b"GET /healthz HTTP/1.0\r\n\r\n")
    assert statuses(answer) == [200]
    assert seconds < 2


@pytest.fixture
def small_server(monkeypatch):
    """A server whose bounds are small enough to reach, with an app that answers more than a socket holds."""
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 3)
    monkeypatch.setattr(protocol, "STALL_SECONDS", 1.0)

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(30_000_000)})

    class Guarded(protocol.GuardedProtocol):
        refused = staticmethod(lambda error, context: None)

    class Sweeping(uvicorn.Server):
        async def on_tick(self, counter):
            for connection in list(self.server_state.connections):
                connection.check(time.monotonic())
            return await super().on_tick(counter)

    server = Sweeping(uvicorn.Config(app, port=0, http=Guarded, lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1], server.server_state.connections
    server.should_exit = True
    thread.join()


def test_more_connections_than_allowed_are_told_to_come_back(small_server):
    port, _ = small_server
    held = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
    time.sleep(0.2)
    answer, _ = exchange(port)
    assert statuses(answer) == [503]
    assert b"Retry-After: " in answer
    for connection in held:
        connection.close()


def test_a_client_that_does_not_read_its_answer_is_closed(small_server):
    port, connections = small_server
    with socket.create_connection(("127.0.0.1", port)) as lazy:
        lazy.sendall(request())
        time.sleep(0.5)
        assert len(connections) == 1
        until = time.monotonic() + 10
        while connections:
            assert time.monotonic() < until
            time.sleep(0.1)


def test_refusals_are_counted(serving, http):
    def count() -> float:
        lines = http.get("/metrics").text.splitlines()
        return float(
            next(
                line.split()[-1]
                for line in lines
                if line.startswith('paca_requests_total{code="431",endpoint="other"}')
            )
        )

    before = count()
    exchange(serving.port, request(headers=HOST + b"X: " + b"a" * 17_000 + b"\r\n"))
    assert count() == before + 1
