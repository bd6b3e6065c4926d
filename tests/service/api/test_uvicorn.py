"""The canary for uvicorn's members that are not its public interface: which of them went, by name.

`server` and `protocol` override or read these. pyproject.toml bounds uvicorn to versions that passed here.
"""

from __future__ import annotations

import asyncio
import inspect
import re

import pytest
import uvicorn
from uvicorn.lifespan.on import LifespanOn
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

MEMBERS: dict[type, list[str]] = {
    HttpToolsProtocol: [
        "connections",
        "cycle",
        "flow",
        "headers",
        "loop",
        "parser",
        "pipeline",
        "timeout_keep_alive",
        "timeout_keep_alive_task",
        "transport",
        "url",
        "timeout_keep_alive_handler",
        "_unset_keepalive_if_required",
        "connection_made",
        "data_received",
        "on_message_begin",
        "on_headers_complete",
        "on_response_complete",
        "on_message_complete",
    ],
    RequestResponseCycle: [
        "disconnected",
        "keep_alive",
        "message_event",
        "more_body",
        "response_complete",
        "response_started",
    ],
    FlowControl: ["read_paused"],
    LifespanOn: ["state"],
    ServerState: ["connections"],
    uvicorn.Server: [
        "config",
        "force_exit",
        "handle_exit",
        "lifespan",
        "on_tick",
        "server_state",
        "servers",
        "should_exit",
        "shutdown",
        "startup",
    ],
    uvicorn.Config: ["backlog", "http_protocol_class"],
}


@pytest.mark.parametrize(
    ("owner", "member"), [(owner, member) for owner, members in MEMBERS.items() for member in members]
)
def test_a_member_of_uvicorn_that_is_overridden_is_still_there(owner, member):
    assigned = re.search(rf"self\.{member}(:.*)? \+?= ", inspect.getsource(owner))
    assert hasattr(owner, member) or assigned, (
        f"uvicorn {uvicorn.__version__} has no {owner.__name__}.{member}: service/api/server.py and "
        "protocol.py need another way before this version can be allowed"
    )


def test_the_protocol_is_made_with_the_same_arguments_and_writes_the_same_status_lines():
    assert list(inspect.signature(HttpToolsProtocol).parameters) == [
        "config",
        "server_state",
        "app_state",
        "_loop",
    ]
    assert httptools_impl.STATUS_LINE[503] == b"HTTP/1.1 503 Service Unavailable\r\n"


def test_the_protocol_without_a_request_has_no_cycle_and_an_empty_pipeline():
    async def made() -> HttpToolsProtocol:
        config = uvicorn.Config(app=lambda: None)
        return HttpToolsProtocol(config, ServerState(), {}, asyncio.get_running_loop())

    protocol = asyncio.run(made())
    assert protocol.cycle is None
    assert not protocol.pipeline
