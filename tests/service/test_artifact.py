"""The manifest: what a file says of itself, and what a reader refuses."""

import dataclasses
import json

import numpy as np
import pytest

from service.artifact import (
    HEAD_KEY,
    MANIFEST_KEY,
    Golden,
    Head,
    Manifest,
    Preprocessing,
    StageInfo,
    golden_picture,
)
from service.errors import BadArtifact

MANIFEST = Manifest(
    name="pets",
    variant="paca_small_128",
    config={"name": "paca_small_128"},
    labels=("cat", "dog"),
    preprocessing=Preprocessing((128, 128), "stretch", 1.0, "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
    stages=(
        StageInfo(1, (32, 32), 64, 2, 49, "conv", "assignment_1"),
        StageInfo(2, (16, 16), 128, 3, 0, None, None),
    ),
    input="uint8",
    dynamic_size=False,
    precision="fp32",
    opset=23,
    attention_nodes=5,
    parameters=7,
    macs=11,
    checkpoint_sha256=None,
    tools={"torch": "2.13.0"},
    golden=Golden(0, 1, (0.5, 1.5), 1e-3),
)


def changed(**members: object) -> str:
    return json.dumps({**json.loads(MANIFEST.to_json()), **members})


def test_a_manifest_survives_its_own_json() -> None:
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST


def test_only_stages_with_an_output_count_as_clustered() -> None:
    assert [stage.stage for stage in MANIFEST.clustered_stages] == [1]


def test_an_unknown_schema_is_refused_with_both_numbers() -> None:
    with pytest.raises(BadArtifact, match=r"schema 7, this server reads schema 1"):
        Manifest.from_json(changed(schema=7))


def test_members_of_a_newer_writer_are_ignored() -> None:
    assert Manifest.from_json(changed(colour="blue")) == MANIFEST


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("not json", "not a JSON object"),
        ("[]", "not a JSON object"),
        (changed(labels=[]), "lists no labels"),
        (changed(input="bfloat16"), "unknown input kind 'bfloat16'"),
        (changed(temperature=0), "temperature must be positive"),
        (changed(preprocessing={"size": [8, 8]}), "incomplete"),
        (
            changed(preprocessing={**dataclasses.asdict(MANIFEST.preprocessing), "resize": "wrap"}),
            "preprocessing this server does not know",
        ),
    ],
)
def test_a_manifest_that_cannot_be_served_is_refused(text: str, reason: str) -> None:
    with pytest.raises(BadArtifact, match=reason):
        Manifest.from_json(text)


def test_a_file_without_manifest_says_how_to_make_one() -> None:
    with pytest.raises(BadArtifact, match="paca export"):
        Manifest.from_metadata({"other": "x"})
    assert Manifest.from_metadata({MANIFEST_KEY: MANIFEST.to_json()}) == MANIFEST


def test_head_weights_survive_base64() -> None:
    head = Head(np.arange(6, dtype=np.float32).reshape(2, 3), np.array([7.0, 8.0], np.float32))
    read = Head.from_metadata({HEAD_KEY: head.to_text()}, classes=2)
    assert read.weight.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert read.bias.tolist() == [7, 8]


@pytest.mark.parametrize("text", ["", "§§§", "AAAA"])
def test_head_weights_that_do_not_fit_are_refused(text: str) -> None:
    with pytest.raises(BadArtifact):
        Head.from_metadata({HEAD_KEY: text}, classes=2)


def test_float_input_is_normalised_channel_first() -> None:
    pixels = np.full((1, 2, 2, 3), 255, np.uint8)
    assert MANIFEST.preprocessing.to_float(pixels).tolist() == [
        [[[2.0, 2.0], [2.0, 2.0]]] * 3
    ]  # (1 - 0.5) / 0.25


def test_the_golden_picture_is_the_same_everywhere() -> None:
    picture = golden_picture((5, 7), seed=0)
    assert picture.shape == (5, 7, 3)
    assert picture[0, :3, 0].tolist() == golden_picture((5, 7), 0)[0, :3, 0].tolist()
    assert picture.std() > 20
