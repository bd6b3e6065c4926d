"""The end of a classifier is told from its structure, and every claim holds in numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.importing.graph import Graph, read_model
from export.importing.recognise import End, recognise
from export.importing.surgery import find_picture

from .graphs import CLASSES, FIRST_ORDER, LINEAR, NO_HEAD, WIDTH, Net, saved


def end_of(net: Net, folder: Path, **how: Any) -> End:
    model = read_model(saved(net.model(**how), folder))
    picture = find_picture(model, None)
    return recognise(Graph(model, picture.name, picture.shape("batch")))


@pytest.mark.parametrize("build", LINEAR.values(), ids=LINEAR.keys())
def test_a_linear_end_after_a_mean_is_exact(build: Callable[[Net], Net], tmp_path: Path) -> None:
    end = end_of(build(Net()), tmp_path)
    assert end.head == "linear", end.reason
    assert end.reason.startswith("exact: ")
    assert end.mean.grid == (8, 8)
    assert end.weights.weight.shape == (CLASSES, end.mean.width)


@pytest.mark.parametrize("build", FIRST_ORDER.values(), ids=FIRST_ORDER.keys())
def test_more_than_a_linear_layer_after_the_mean_is_of_first_order(
    build: Callable[[Net], Net], tmp_path: Path
) -> None:
    end = end_of(build(Net()), tmp_path)
    assert end.head == "first_order", end.reason
    assert "not linear" in end.reason
    assert end.weights is None
    assert end.mean.width == WIDTH


@pytest.mark.parametrize(("build", "reason"), NO_HEAD.values(), ids=NO_HEAD.keys())
def test_any_other_end_has_no_map_of_its_own(
    build: Callable[[Net], Net], reason: str, tmp_path: Path
) -> None:
    end = end_of(build(Net()), tmp_path)
    assert (end.head, end.mean, end.weights) == ("none", None, None)
    assert reason in end.reason


def test_a_gate_inside_the_network_is_not_its_end(tmp_path: Path) -> None:
    """Squeeze and excitation takes means too, but not all evidence passes through them."""
    net = Net().trunk()
    trunk = net.at
    net.op("GlobalAveragePool").op("Sigmoid").op("Mul", trunk).op("Flatten").gemm(WIDTH * 64)
    assert end_of(net, tmp_path).head == "none"


def test_a_way_around_the_mean_makes_a_claim_impossible(tmp_path: Path) -> None:
    net = Net().trunk()
    trunk = net.at
    first = net.op("GlobalAveragePool").op("Flatten").gemm().at
    net.op("GlobalMaxPool", at=trunk).op("Flatten").gemm().op("Add", first)
    assert end_of(net, tmp_path).head == "none"


def test_the_softmax_is_named(tmp_path: Path) -> None:
    assert end_of(LINEAR["softmax at the end"](Net()), tmp_path).softmax == "Softmax"
    assert end_of(LINEAR["global pool, Gemm"](Net()), tmp_path).softmax is None


def test_an_identity_head_has_the_identity_as_weights(tmp_path: Path) -> None:
    end = end_of(LINEAR["1x1 convolution, ReLU, pool"](Net()), tmp_path)
    np.testing.assert_array_equal(end.weights.weight, np.eye(CLASSES))
    assert "is the answer itself" in end.reason


def test_tokens_of_a_wide_picture_get_a_wide_grid(tmp_path: Path) -> None:
    net = Net()
    net.trunk().op("Reshape", net.constant(np.array([0, WIDTH, 128]))).op("Transpose", perm=[0, 2, 1])
    net.op("ReduceMean", axes=[1], keepdims=0).gemm()
    assert end_of(net, tmp_path, shape=("N", 3, 32, 64)).mean.grid == (8, 16)
