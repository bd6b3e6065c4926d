"""The port: health and reflection, several workers, a shutdown that loses no call, and what is said where it
cannot be opened."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from tests.service.api.rpc.conftest import grpc, infer_message, triton
from tests.serving import free_port

health = pytest.importorskip("grpc_health.v1.health_pb2")
health_grpc = pytest.importorskip("grpc_health.v1.health_pb2_grpc")
reflection = pytest.importorskip("grpc_reflection.v1alpha.proto_reflection_descriptor_database")
pb, Stub = triton.service_pb2, triton.service_pb2_grpc.GRPCInferenceServiceStub
SERVICE = "inference.GRPCInferenceService"
SERVING, NOT_SERVING = health.HealthCheckResponse.SERVING, health.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("service", ["", SERVICE])
def test_health_says_that_it_serves(channel, service):
    asked = health.HealthCheckRequest(service=service)
    assert health_grpc.HealthStub(channel).Check(asked).status == SERVING


def test_health_does_not_know_services_that_are_not_there(channel):
    with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
        health_grpc.HealthStub(channel).Check(health.HealthCheckRequest(service="other"))


def test_reflection_shows_the_services_and_the_protocol_as_triton_has_it(channel):
    """Every message, field and number of ours is the protocol's."""
    known = reflection.ProtoReflectionDescriptorDatabase(channel)
    assert {SERVICE, "grpc.health.v1.Health"} <= set(known.get_services())
    ours = known.FindFileContainingSymbol(SERVICE)
    theirs = FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(theirs)

    def fields(messages, prefix: str = "") -> dict[str, tuple[int, int, int]]:
        found: dict[str, tuple[int, int, int]] = {}
        for message in messages:
            name = f"{prefix}{message.name}."
            found |= {f"{name}{f.name}": (f.number, f.type, f.label) for f in message.field}
            found |= fields(message.nested_type, name)
        return found

    assert fields(ours.message_type).items() <= fields(theirs.message_type).items()
    methods = {m.name: (m.input_type, m.output_type) for m in theirs.service[0].method}
    assert {m.name: (m.input_type, m.output_type) for m in ours.service[0].method}.items() <= methods.items()


def test_reflection_needs_a_key_where_there_are_keys(open_door, tmp_path):
    (tmp_path / "keys").write_text("first-key\n")
    with open_door(api_keys=tmp_path / "keys") as door, grpc.insecure_channel(door.address) as channel:
        with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
            reflection.ProtoReflectionDescriptorDatabase(channel).get_services()
        assert health_grpc.HealthStub(channel).Check(health.HealthCheckRequest()).status == SERVING


async def load(address: str, request, until: asyncio.Event) -> list[grpc.RpcError | None]:
    """What became of each call of a caller who asks again and again; None where it was answered."""
    outcome: list[grpc.RpcError | None] = []
    async with grpc.aio.insecure_channel(address) as channel:
        while not until.is_set():
            try:
                await Stub(channel).ModelInfer(request)
                outcome.append(None)
            except grpc.RpcError as error:
                outcome.append(error)
                await asyncio.sleep(0.05)
    return outcome


@pytest.mark.parametrize("workers", [1, 2])
def test_a_shutdown_under_load_loses_no_call(open_door, jpeg, workers):
    """Each call that was taken is answered; the others are told to go elsewhere, or cannot connect."""

    async def scenario(door) -> list[grpc.RpcError | None]:
        until = asyncio.Event()
        callers = [asyncio.create_task(load(door.address, infer_message(jpeg), until)) for _ in range(8)]
        await asyncio.sleep(1)
        door.serving.process.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(door.serving.process.wait, 30)
        assert code == 0
        await asyncio.sleep(0.5)
        until.set()
        return [result for caller in callers for result in await caller]

    with open_door(workers=workers) as door:
        outcome = asyncio.run(scenario(door))
    told = Counter((error.code().name, error.details()[:60]) for error in outcome if error)
    print(outcome.count(None), told)
    assert outcome.count(None) > 20
    # In the instant of closing the library itself may refuse a call that it has not handed on: as CANCELLED.
    assert {code for code, _ in told} <= {"UNAVAILABLE", "CANCELLED"}
    assert sum(count for (code, _), count in told.items() if code == "CANCELLED") <= 8
    assert any("shutting down" in details for _, details in told)


def test_calls_under_way_are_answered_and_watchers_told(open_embedded, jpeg):
    seen: list[int] = []
    with open_embedded(instances=1, threads=1, queue_size=500) as door:
        with grpc.insecure_channel(door.address) as channel:
            watch = health_grpc.HealthStub(channel).Watch(health.HealthCheckRequest())
            seen.append(next(watch).status)
            thread = threading.Thread(target=lambda: seen.append(next(watch).status))
            thread.start()
            request = infer_message(jpeg, model="imagenette-image", count=16)
            calls = [Stub(channel).ModelInfer.future(request) for _ in range(6)]
            while door.figure("paca_in_flight") < 7:
                pass
            door.serving.process.send_signal(signal.SIGINT)  # no moment of grace: the port closes at once
            assert all(call.result().outputs[0].shape[0] == 16 for call in calls)
            thread.join(10)
        assert door.serving.process.wait(15) == 0
    assert seen == [SERVING, NOT_SERVING]


def test_several_workers_share_the_port(open_door, jpeg):
    with open_door(workers=2) as door:
        for _ in range(30):
            with grpc.insecure_channel(door.address) as channel:  # a connection of its own
                assert Stub(channel).ModelInfer(infer_message(jpeg)).outputs[0].name == "logits"
        assert len(door.serving.workers()) == 2


def start(models: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service", "serve"],
        env={**os.environ, "PACA_MODELS": str(models), "PACA_PORT": "0", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_taken_port_is_said_in_one_line(tiny_repository, channel, door, workers):
    port = door.address.rpartition(":")[2]
    done = start(tiny_repository, PACA_GRPC_PORT=port, PACA_WORKERS=workers)
    assert done.returncode == 1
    assert f"port {port} for gRPC" in done.stderr
    assert "PaCa is ready" not in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("missing", ["grpc", "grpc_health", "grpc_reflection"])
def test_without_the_extra_it_says_what_to_install(tiny_repository, tmp_path, missing):
    (tmp_path / f"{missing}.py").write_text(
        f'raise ModuleNotFoundError("No module named {missing}", name="{missing}")'
    )
    done = start(tiny_repository, PACA_GRPC_PORT=str(free_port()), PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert f"needs the extra 'grpc' ({missing} is missing)" in done.stderr
    assert "pip install '.[grpc]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_setting_nothing_of_grpc_is_loaded():
    code = (
        "import sys, service.api.launch; sys.exit('grpc' in sys.modules or 'google.protobuf' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
