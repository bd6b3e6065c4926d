"""NVIDIA's client, over HTTP and gRPC, runs the tensors of a model that segments."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.service.api.rpc.conftest import Door, http_triton, opened, picture, triton


@pytest.fixture(scope="module")
def door(masks_repository: Path) -> Iterator[Door]:
    with opened(masks_repository) as running:
        until = time.monotonic() + 60
        while httpx.get(f"{running.serving.url}/models/tiny-masks").status_code != 200:
            assert time.monotonic() < until
        yield running


def client(door: Door, kind: str) -> Any:
    if kind == "grpc":
        return triton.InferenceServerClient(door.address)
    return http_triton.InferenceServerClient(door.serving.url.removeprefix("http://"))


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_pixels_of_several_sizes_give_logits_and_class_clusters(door: Door, kind: str) -> None:
    library = triton if kind == "grpc" else http_triton
    with client(door, kind) as ours:
        for height, width in ((64, 64), (64, 96), (128, 64)):
            pixels = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
            given = library.InferInput("image", list(pixels.shape), "UINT8")
            given.set_data_from_numpy(pixels)
            answer = ours.infer("tiny-masks", [given])
            logits, clusters = answer.as_numpy("logits"), answer.as_numpy("assignment_0")
            assert logits.shape == clusters.shape == (2, 4, height // 4, width // 4)
            np.testing.assert_allclose(clusters.sum((2, 3)), 1, atol=1e-5)


def test_an_encoded_photo_gives_the_same_by_both_ways(door: Door, jpeg: bytes) -> None:
    with client(door, "grpc") as ours:
        by_grpc = ours.infer("tiny-masks-image", [picture(jpeg)]).as_numpy("logits")
    given = http_triton.InferInput("image", [1], "BYTES")
    given.set_data_from_numpy(np.array([jpeg], dtype=np.object_))
    with client(door, "http") as ours:
        by_http = ours.infer("tiny-masks-image", [given]).as_numpy("logits")
    assert by_grpc.shape == (1, 4, 16, 24)
    np.testing.assert_array_equal(by_grpc, by_http)
