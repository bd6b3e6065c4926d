"""`paca serve` with its gRPC port open. Messages are those of NVIDIA's client: ours, of the same names,
cannot be loaded beside them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest

from tests.serving import Serving, free_port, served

grpc = pytest.importorskip("grpc")
triton = pytest.importorskip("tritonclient.grpc")
http_triton = pytest.importorskip("tritonclient.http")
PREFIX = "/inference.GRPCInferenceService/"


@dataclass
class Door:
    """A server and its gRPC address."""

    serving: Serving
    address: str

    def figure(self, name: str, **labels: str) -> float:
        """A metric's value, summed over the labels not given."""
        text = httpx.get(f"{self.serving.url}/metrics", timeout=60).text
        found = re.findall(rf"^{name}(?:{{([^}}]*)}})? ([0-9.e+-]+)$", text, re.M)
        wanted = {f'{label}="{value}"' for label, value in labels.items()}
        return sum(float(value) for given, value in found if wanted <= set(given.split(",")))


@contextmanager
def opened(models: object, **settings: object) -> Iterator[Door]:
    port = free_port()
    with served(models, grpc_port=port, **settings) as serving:  # type: ignore[arg-type]
        yield Door(serving, f"127.0.0.1:{port}")


@pytest.fixture(scope="session")
def open_door(tiny_repository) -> Callable[..., Any]:
    """Starts a server with the tiny model and any settings: `with open_door(workers=2) as door`."""
    return lambda **settings: opened(tiny_repository, **settings)


@pytest.fixture(scope="session")
def open_embedded() -> Callable[..., Any]:
    """The same with the embedded model, which is slow enough to be overloaded."""
    return lambda **settings: opened(None, **settings)


@pytest.fixture(scope="session")
def door(open_door) -> Iterator[Door]:
    """A server shared by the tests that leave it as it was."""
    with open_door() as running:
        yield running


@pytest.fixture
def channel(door) -> Iterator[Any]:
    with grpc.insecure_channel(door.address) as ready:
        yield ready


def unary(channel: Any, method: str) -> Any:
    """A method of the service, bytes in and out: for messages that no client would make."""
    return channel.unary_unary(PREFIX + method)


def picture(jpeg: bytes, count: int = 1) -> Any:
    """Encoded photos as NVIDIA's client sends them."""
    given = triton.InferInput("image", [count], "BYTES")
    given.set_data_from_numpy(np.array([jpeg] * count, dtype=np.object_))
    return given


def infer_message(jpeg: bytes, model: str = "tiny-image", count: int = 1) -> Any:
    """The same as the message that goes over the wire. Only logits come back."""
    raw = (len(jpeg).to_bytes(4, "little") + jpeg) * count
    pb = triton.service_pb2
    return pb.ModelInferRequest(
        model_name=model,
        inputs=[{"name": "image", "datatype": "BYTES", "shape": [count]}],
        outputs=[{"name": "logits"}],
        raw_input_contents=[raw],
    )
