"""Request ids, traces and Server-Timing."""

import pytest
from starlette.datastructures import Headers

from service.api.context import Context
from service.results import Timings


def test_a_usable_request_id_is_kept():
    assert Context.of(Headers({"x-request-id": "order-7:a.b_c"})).request_id == "order-7:a.b_c"


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a\nb", "ä", "<script>"])
def test_any_other_is_replaced(given):
    made = Context.of(Headers(raw=[(b"x-request-id", given.encode())])).request_id
    assert made != given
    assert len(made) == 32


@pytest.mark.parametrize(
    ("header", "trace"),
    [
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "4bf92f3577b34da6a3ce929d0e0e4736"),
        (
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-future",
            "4bf92f3577b34da6a3ce929d0e0e4736",
        ),
        ("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", None),
        ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", None),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", None),
        ("nonsense", None),
    ],
)
def test_a_w3c_traceparent_names_the_trace(header, trace):
    assert Context.of(Headers({"traceparent": header})).trace_id == trace


def test_server_timing_takes_the_slowest_of_several_pictures():
    context = Context(
        request_id="id",
        trace_id=None,
        started=0.0,
        timings=[Timings(1, 2, 3, 6), Timings(2, 1, 3, 6, render=4)],
    )
    assert (
        context.server_timing
        == "decode;dur=2.000, queue;dur=2.000, inference;dur=3.000, render;dur=4.000, total;dur=6.000"
    )


def test_without_an_answer_there_is_no_server_timing():
    assert Context(request_id="id", trace_id=None, started=0.0).server_timing is None
