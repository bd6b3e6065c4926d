"""OpenTelemetry, switched on: spans arrive at a collector, belong to the caller's trace, and carry the
numbers of the answer."""

from __future__ import annotations

import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

pytest.importorskip("opentelemetry.sdk")
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def collector(monkeypatch):
    """An OTLP endpoint that keeps what it is sent."""
    received: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        yield received
        server.shutdown()


def spans(received: list[bytes]) -> list:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    resources = [r for body in received for r in ExportTraceServiceRequest.FromString(body).resource_spans]
    return [(r.resource, span) for r in resources for scope in r.scope_spans for span in scope.spans]


def test_a_request_is_a_span_of_the_callers_trace(collector, open_app, jpeg, caplog):
    caplog.set_level(logging.INFO, "paca.access")
    with open_app(otel=True) as client:
        client.post(
            "/classify?top_k=2",
            content=jpeg,
            headers={"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "X-Request-ID": "r7"},
        )
    found = spans(collector)
    ((resource, span),) = [(resource, span) for resource, span in found if span.name == "POST /classify"]
    attributes = {a.key: a.value for a in span.attributes}
    assert span.trace_id.hex() == TRACE
    assert (attributes["paca.request_id"].string_value, attributes["paca.model"].string_value) == (
        "r7",
        "tiny:1",
    )
    assert attributes["paca.inference_ms"].double_value > 0
    assert "paca" in {a.value.string_value for a in resource.attributes if a.key == "service.name"}
    assert not any("readyz" in span.name for _, span in found)


def test_the_log_names_the_trace(open_app, jpeg, caplog):
    caplog.set_level(logging.INFO, "paca.access")
    with open_app() as client:
        client.post("/classify", content=jpeg, headers={"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"})
    (line,) = [
        record.fields
        for record in caplog.records
        if record.name == "paca.access" and record.fields["path"] == "/classify"
    ]
    assert line["trace_id"] == TRACE
    assert (line["status"], line["bytes_in"], line["model"]) == (200, len(jpeg), "tiny:1")
    json.dumps(line)
