"""Binding the address, and what is said about it."""

from __future__ import annotations

import pytest

from service.api.launch import listen, reachable
from service.errors import CannotStart


def test_a_taken_port_is_said_in_one_line(free_port):
    with listen("127.0.0.1", free_port) as taken:
        taken.listen()
        with pytest.raises(CannotStart, match=f"port {free_port}"):
            listen("127.0.0.1", free_port)


@pytest.mark.parametrize("host", ["a" * 64, "a..b", "\0", "no such host", "203.0.113.1"])
def test_a_host_that_cannot_be_listened_on_is_said_in_one_line(host):
    with pytest.raises(CannotStart, match=r"cannot listen on .*PACA_HOST") as refused:
        listen(host, 0)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("listened", "asked"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),  # noqa: S104
        ("::", "[::1]"),
        ("::1", "[::1]"),
        ("fe80::2", "[fe80::2]"),
        ("box.lan", "box.lan"),
    ],
)
def test_the_ready_line_names_a_host_that_can_be_asked(listened, asked):
    assert reachable(listened) == asked
