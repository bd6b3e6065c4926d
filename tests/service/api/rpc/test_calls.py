"""What stands around every call: keys, limits, deadlines, ids, one log line, the metrics; and that work whose
caller left is dropped."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable

import httpx
import pytest

from tests.service.api.rpc.conftest import Door, grpc, infer_message, triton, unary

pb, Stub = triton.service_pb2, triton.service_pb2_grpc.GRPCInferenceServiceStub
INFER = "/inference.GRPCInferenceService/ModelInfer"


def eventually(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not true():
        assert time.monotonic() < until
        time.sleep(0.1)


def refused(call, request, **how) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as told:
        call(request, timeout=60, **how)
    return told.value


def trailing(error: grpc.RpcError) -> dict[str, str]:
    return dict(error.trailing_metadata() or ())


def test_an_id_is_echoed_or_made(channel, jpeg):
    for method, request in (("ServerLive", b""), ("ModelInfer", infer_message(jpeg).SerializeToString())):
        _, call = unary(channel, method).with_call(request, metadata=(("x-request-id", "r-1"),))
        assert dict(call.trailing_metadata())["x-request-id"] == "r-1"
    _, call = unary(channel, "ServerLive").with_call(b"")
    assert len(dict(call.trailing_metadata())["x-request-id"]) == 32
    error = refused(unary(channel, "ModelInfer"), b"", metadata=(("x-request-id", "r-2"),))
    assert trailing(error)["x-request-id"] == "r-2"


def test_calls_are_counted_as_requests_are(door, channel, jpeg):
    def counted(code: str) -> float:
        return door.figure("paca_requests_total", endpoint=INFER, code=code)

    good, bad = counted("200"), counted("404")
    pictures = door.figure("paca_inferred_total")
    rejected = door.figure("paca_rejected_total", reason="unknown-model")
    Stub(channel).ModelInfer(infer_message(jpeg))
    refused(Stub(channel).ModelInfer, infer_message(jpeg, model="other"))
    eventually(lambda: (counted("200"), counted("404")) == (good + 1, bad + 1))
    assert door.figure("paca_rejected_total", reason="unknown-model") == rejected + 1
    assert door.figure("paca_request_seconds_count", endpoint=INFER) >= 2
    eventually(lambda: door.figure("paca_inferred_total") == pictures + 1)
    assert door.figure("paca_in_flight") == 1  # this one


@pytest.fixture(scope="module")
def guarded(open_door, tmp_path_factory):
    """A server with keys and low limits."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("first-key\n")
    with open_door(api_keys=keys, max_body_mb=1, max_images=3) as door:
        yield door


KEY = (("x-api-key", "first-key"),)


@pytest.mark.parametrize("key", [KEY, (("authorization", "Bearer first-key"),)])
def test_a_right_key_gets_in(guarded, jpeg, key):
    with grpc.insecure_channel(guarded.address) as channel:
        assert Stub(channel).ModelInfer(infer_message(jpeg), metadata=key).outputs[0].name == "logits"


@pytest.mark.parametrize("key", [(), (("x-api-key", "other"),), (("authorization", "first-key"),)])
@pytest.mark.parametrize("method", ["ModelInfer", "ModelMetadata", "ServerMetadata", "ModelReady", "Nothing"])
def test_anything_else_does_not(guarded, jpeg, key, method):
    with grpc.insecure_channel(guarded.address) as channel:
        error = refused(unary(channel, method), infer_message(jpeg).SerializeToString(), metadata=key)
    assert error.code().name == "UNAUTHENTICATED"
    over_http = httpx.get(f"{guarded.serving.url}/v2/models/tiny").json()["error"]
    assert error.details() == over_http
    assert "Bearer" in trailing(error)["www-authenticate"]


def test_whether_the_server_lives_and_is_ready_needs_no_key(guarded):
    with grpc.insecure_channel(guarded.address) as channel:
        assert Stub(channel).ServerLive(pb.ServerLiveRequest()).live
        assert Stub(channel).ServerReady(pb.ServerReadyRequest()).ready


def test_the_limits_are_those_of_http(guarded, jpeg):
    large = b"\xff\xd8\xff" + bytes(1 << 20)
    over_http = httpx.post(
        f"{guarded.serving.url}/classify", content=large, headers={"X-API-Key": "first-key"}
    )
    with grpc.insecure_channel(guarded.address) as channel:
        infer = Stub(channel).ModelInfer
        bytes_error = refused(infer, infer_message(large), metadata=KEY)
        assert bytes_error.code().name == "INVALID_ARGUMENT"
        assert bytes_error.details() == over_http.json()["detail"]
        assert infer(infer_message(jpeg, count=3), metadata=KEY).outputs[0].shape[0] == 3
        count_error = refused(infer, infer_message(jpeg, count=4), metadata=KEY)
        assert count_error.code().name == "INVALID_ARGUMENT"
        assert "at most 3" in count_error.details()
        # what is larger by far the library refuses itself, before it holds it in memory
        assert refused(infer, infer_message(large * 3), metadata=KEY).code().name == "RESOURCE_EXHAUSTED"


def test_compressed_messages_are_not_taken(guarded, jpeg):
    """A small one could become a huge one."""
    with grpc.insecure_channel(guarded.address, compression=grpc.Compression.Gzip) as channel:
        error = refused(Stub(channel).ModelInfer, infer_message(bytes(900_000)), metadata=KEY)
    assert error.code().name == "UNIMPLEMENTED"


def test_a_call_without_a_message_is_refused(channel):
    with pytest.raises(grpc.RpcError, match="without a message"):
        channel.stream_unary(INFER)(iter(()))


async def flood(door: Door, jpeg: bytes, calls: int, **how) -> tuple[Counter[str], list[grpc.RpcError]]:
    """Many calls at once: how many ended in which code, and the errors."""
    request, outcome, errors = infer_message(jpeg, model="imagenette-image"), Counter[str](), []
    async with grpc.aio.insecure_channel(door.address) as channel:

        async def one():
            try:
                await Stub(channel).ModelInfer(request, **how)
                outcome["OK"] += 1
            except grpc.RpcError as error:
                outcome[error.code().name] += 1
                errors.append(error)

        await asyncio.gather(*(one() for _ in range(calls)))
    return outcome, errors


def test_of_a_flood_every_call_is_answered_or_told_when_to_come_again(open_embedded, jpeg):
    with open_embedded(instances=1, threads=1, queue_size=4) as door:
        outcome, errors = asyncio.run(flood(door, jpeg, 300))
        assert set(outcome) == {"OK", "RESOURCE_EXHAUSTED"}
        assert sum(outcome.values()) == 300
        for error in errors:
            assert int(trailing(error)["retry-after"]) >= 1
            assert int(trailing(error)["grpc-retry-pushback-ms"]) >= 1000
            assert "try again" in error.details()
        assert door.figure("paca_rejected_total", reason="overloaded") == outcome["RESOURCE_EXHAUSTED"]
        outcome, _ = asyncio.run(flood(door, jpeg, 2))
        assert outcome == {"OK": 2}


def test_the_earlier_deadline_counts_and_what_is_late_is_dropped(open_embedded, jpeg):
    with open_embedded(instances=1, threads=1, queue_size=500, deadline_ms=300) as door:
        outcome, errors = asyncio.run(flood(door, jpeg, 200))  # the server's
        assert set(outcome) == {"OK", "DEADLINE_EXCEEDED"}
        assert all("deadline" in error.details() for error in errors)
        late = door.figure("paca_rejected_total", reason="deadline-exceeded")
        assert late == outcome["DEADLINE_EXCEEDED"]
    with open_embedded(instances=1, threads=1, queue_size=500) as door:
        outcome, _ = asyncio.run(flood(door, jpeg, 200, timeout=0.3))  # the client's
        assert set(outcome) == {"OK", "DEADLINE_EXCEEDED"}
        eventually(lambda: door.figure("paca_in_flight") == 1)
        assert door.figure("paca_inferred_total", queue="model") < 200


KILLED = """
import sys, grpc, tritonclient.grpc as triton
request = triton.service_pb2.ModelInferRequest.FromString(sys.stdin.buffer.read())
channel = grpc.insecure_channel(sys.argv[1])
infer = triton.service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
calls = [infer.future(request) for _ in range(100)]
calls[0].result()
print("waiting", flush=True)
for call in calls:
    call.result()
"""


def test_the_work_of_a_client_that_was_killed_is_dropped(open_embedded, jpeg):
    with open_embedded(instances=1, threads=1, queue_size=500) as door:
        before = door.figure("paca_inferred_total")
        client = subprocess.Popen(
            [sys.executable, "-c", KILLED, door.address], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert client.stdin
        assert client.stdout
        client.stdin.write(infer_message(jpeg, model="imagenette-image").SerializeToString())
        client.stdin.close()
        assert client.stdout.readline() == b"waiting\n"
        client.kill()
        client.wait()
        client.stdout.close()
        eventually(lambda: door.figure("paca_in_flight") == 1)
        cancelled = door.figure("paca_cancelled_total")
        time.sleep(1.5)  # the counters of the queue are brought up to date once a second
        answered = door.figure("paca_inferred_total") - before
        assert cancelled > 0
        assert door.figure("paca_requests_total", endpoint=INFER, code="499") == cancelled
        assert answered < 100
        outcome, _ = asyncio.run(flood(door, jpeg, 2))
        assert outcome == {"OK": 2}
