"""Every error has one status, and says nothing that is not for its reader."""

import json

import pytest

from service import errors
from service.api import problems
from service.api.context import Context


def leaves(kind: type) -> list[type]:
    children: list[type] = kind.__subclasses__()
    return [leaf for child in children for leaf in leaves(child)] if children else [kind]


def scope(path: str = "/classify") -> dict:
    return {"type": "http", "path": path, "paca": Context(request_id="id-1", trace_id=None, started=0.0)}


@pytest.mark.parametrize(
    "kind",
    [
        k
        for branch in (errors.InvalidInput, errors.Unavailable, errors.DeadlineExceeded)
        for k in leaves(branch)
    ],
)
def test_every_error_a_request_can_meet_has_a_status(kind):
    assert problems.row_of(kind("x")) in problems.STATUS.values()


def test_every_error_has_a_code_that_grpc_knows():
    grpc = pytest.importorskip("grpc")
    codes = set(grpc.StatusCode.__members__)
    assert {row.rpc for row in (*problems.STATUS.values(), problems.UNFORESEEN)} <= codes


def test_a_problem_names_its_kind_its_status_and_its_request():
    answer = problems.response(errors.TooLarge("too many bytes", limit="max_body_bytes", value=5), scope())
    assert answer.status_code == 413
    assert answer.media_type == "application/problem+json"
    assert json.loads(bytes(answer.body)) == {
        "type": "urn:paca:problem:too-large",
        "title": "Too large",
        "status": 413,
        "detail": "too many bytes",
        "request_id": "id-1",
        "limit": "max_body_bytes",
        "value": 5,
    }


def test_an_unforeseen_error_says_nothing_of_itself():
    answer = problems.response(RuntimeError("/secret/path"), scope())
    assert answer.status_code == 500
    assert b"secret" not in answer.body


def test_an_error_of_starting_up_says_nothing_of_itself_in_a_request():
    assert b"/models" not in problems.response(errors.CannotStart("no folder /models"), scope()).body


@pytest.mark.parametrize(("seconds", "header"), [(0.2, "1"), (1.0, "1"), (2.1, "3")])
def test_what_may_succeed_later_says_when_in_whole_seconds(seconds, header):
    assert (
        problems.response(errors.Overloaded("full", retry_after=seconds), scope()).headers["retry-after"]
        == header
    )


def test_inference_protocol_paths_answer_in_their_own_form():
    answer = problems.response(errors.UnknownModel("no model 'x'"), scope("/v2/models/x"))
    assert (answer.status_code, json.loads(bytes(answer.body))) == (404, {"error": "no model 'x'"})


def test_the_form_is_told_apart_behind_a_prefix_too():
    answer = problems.response(
        errors.UnknownModel("no"), scope("/vision/v2/models/x") | {"root_path": "/vision"}
    )
    assert json.loads(bytes(answer.body)) == {"error": "no"}
