"""The manifest: what a file says of itself, and what a reader refuses."""

import dataclasses
import json

import numpy as np
import pytest

from service.artifact import (
    EXPLAIN_KEY,
    HEAD_KEY,
    MANIFEST_KEY,
    ExplainManifest,
    Golden,
    GoldenMaps,
    Head,
    Manifest,
    OutputInfo,
    Preprocessing,
    StageInfo,
    golden_maps,
    golden_picture,
    readable,
    sample,
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
    outputs=(
        OutputInfo("logits", "logits", 2e-5, ("batch", 2)),
        OutputInfo("tokens", "tokens", 5e-5, ("batch", 256, 128)),
        OutputInfo("assignment_1", "assignment", 1e-5, ("batch", 49, 32, 32)),
    ),
    weights_id="a" * 64,
)
MAPS = GoldenMaps(0, 1, {"map_1": (0.5, -2.0)}, 0.01)
EXPLAIN = ExplainManifest("a" * 64, {"fp32": MAPS})
NEWER = ("task", "outputs", "channels", "weights_id")  # members that schema 1 does not have


def changed(**members: object) -> str:
    return json.dumps({**json.loads(MANIFEST.to_json()), **members})


def nested(**members: dict[str, object]) -> str:
    """The manifest with other values inside its members."""
    values = json.loads(MANIFEST.to_json())
    return json.dumps(values | {name: {**values[name], **inner} for name, inner in members.items()})


def schema_1(**members: object) -> str:
    """The manifest as exporters wrote it before schema 2."""
    values = {key: value for key, value in json.loads(MANIFEST.to_json()).items() if key not in NEWER}
    return json.dumps({**values, "schema": 1, **members})


def test_a_manifest_survives_its_own_json() -> None:
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST


def test_only_stages_with_an_output_count_as_clustered() -> None:
    assert [stage.stage for stage in MANIFEST.clustered_stages] == [1]


def test_an_unknown_schema_is_refused_with_both_numbers() -> None:
    with pytest.raises(BadArtifact, match=r"schema 7, this server reads schema 1 and 2"):
        Manifest.from_json(changed(schema=7))


def test_members_of_a_newer_writer_are_ignored() -> None:
    assert Manifest.from_json(changed(colour="blue")) == MANIFEST


def test_a_file_of_schema_1_is_read_and_its_outputs_follow_from_its_stages() -> None:
    manifest = Manifest.from_json(schema_1(explain={"stage": 1, "maps": [1]}))
    assert (manifest.schema, manifest.task, manifest.channels, manifest.weights_id) == (
        1,
        "classification",
        3,
        None,
    )
    assert [(output.name, output.role) for output in manifest.outputs] == [
        ("logits", "logits"),
        ("tokens", "tokens"),
        ("assignment_1", "assignment"),
        ("features", "features"),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("not json", "not a JSON object"),
        ("[]", "not a JSON object"),
        ("[" * 100_000, "not a JSON object"),
        (changed(schema="2"), "schema '2', this server reads schema 1 and 2"),
        (changed(schema=True), "schema True"),
        (changed(schema=[]), r"schema \[\]"),
        (changed(labels=[]), "wrong at labels: .* at least 1 item"),
        (changed(labels=["cat", 2]), r"wrong at labels\.1: .*string \(it is 2\)"),
        (changed(labels="cat"), "wrong at labels"),
        (changed(input="bfloat16"), "be uint8 or float32 .it is 'bfloat16'"),
        (changed(temperature=0), "wrong at temperature: .*greater than 0"),
        (changed(temperature=float("nan")), "wrong at temperature: .*finite"),
        (changed(config=None), "wrong at config"),
        (changed(preprocessing={"size": [8, 8]}), r"wrong at preprocessing\.resize: Field required"),
        (nested(preprocessing={"resize": "wrap"}), "be stretch or shortest or aspect .it is 'wrap'"),
        (nested(preprocessing={"size": ["wide", 8]}), r"wrong at preprocessing\.size\.0: .*integer"),
        (nested(preprocessing={"size": [8]}), r"wrong at preprocessing\.size\.1: Field required"),
        (nested(preprocessing={"size": [-8, 8]}), r"wrong at preprocessing\.size\.0: .*greater"),
        (nested(preprocessing={"size": [10**9, 8]}), r"wrong at preprocessing\.size\.0: .*less"),
        (nested(preprocessing={"std": [0.2, 0, 0.2]}), r"wrong at preprocessing\.std\.1"),
        (nested(golden={"logits": []}), r"wrong at golden\.logits: .*at least 1 item"),
        (nested(golden={"logits": ["high"]}), r"wrong at golden\.logits\.0: .*number"),
        (nested(golden={"tolerance": float("nan")}), r"wrong at golden\.tolerance"),
        (nested(golden={"seed": -1}), r"wrong at golden\.seed"),
        (nested(golden={"top": 2}), "golden answer .* not one of 2 classes"),
        (nested(golden={"logits": [1, 2, 3]}), "golden answer .* not one of 2 classes"),
        (changed(golden=[1, 2]), "wrong at golden"),
        (changed(stages={}), "wrong at stages"),
        (changed(stages=[{"stage": 1}]), r"wrong at stages\.0\.grid: Field required"),
        (changed(explain={"stage": "2", "maps": [2]}), r"wrong at explain\.stage"),
        (changed(task="translation"), "be classification or segmentation .it is 'translation'"),
        (changed(outputs=[]), "does not list the outputs assignment_1, logits, tokens"),
        (changed(outputs=[{"name": "logits", "role": "soup"}]), r"wrong at outputs\.0\.role"),
        (changed(explain={"stage": 1, "maps": [1]}), "does not list the outputs features"),
        (changed(channels=4), r"takes pictures of 4 channels, this server has 3 \(RGB\)"),
        (changed(weights_id=None), "schema 2, but no weights_id"),
        (schema_1(stages=[7]), r"wrong at stages\.0"),
    ],
)
def test_a_manifest_that_cannot_be_served_is_refused_in_one_line(text: str, reason: str) -> None:
    with pytest.raises(BadArtifact, match=reason) as failure:
        Manifest.from_json(text)
    assert "\n" not in str(failure.value)


INPUTS = {"image": ("tensor(uint8)", ["batch", 128, 128, 3])}
OUTPUTS = {
    "logits": ("tensor(float)", ["batch", 2]),
    "tokens": ("tensor(float)", [None, 256, 128]),
    "assignment_1": ("tensor(float)", ["batch", 49, 32, 32]),
}


def test_a_graph_that_is_what_its_manifest_says_is_accepted() -> None:
    MANIFEST.check_graph(INPUTS, OUTPUTS)


@pytest.mark.parametrize(
    ("inputs", "outputs", "reason"),
    [
        (
            {"pixels": INPUTS["image"]},
            {},
            "input should be 'image' as tensor.uint8., but the file has pixels",
        ),
        ({"image": ("tensor(float)", [1, 3, 128, 128])}, {}, "has image tensor.float."),
        ({"image": ("tensor(uint8)", ["batch", 127, 127, 3])}, {}, "its manifest says .*128, 128, 3"),
        ({"image": ("tensor(uint8)", ["batch", 128, 128, 4])}, {}, "128, 4.*its manifest says .*128, 3"),
        ({"image": ("tensor(uint8)", [])}, {}, "its manifest says"),
        ({}, {"tokens": ("tensor(float)", ["batch", 64, 128])}, "output tokens is .*, but its manifest says"),
        ({}, {"logits": ("tensor(float)", ["batch", 3])}, "output logits"),
    ],
)
def test_a_graph_that_contradicts_its_manifest_is_refused(inputs: dict, outputs: dict, reason: str) -> None:
    with pytest.raises(BadArtifact, match=reason):
        MANIFEST.check_graph(inputs or INPUTS, {**OUTPUTS, **outputs})


def test_outputs_that_the_graph_lacks_are_named() -> None:
    with pytest.raises(BadArtifact, match="lacks the outputs assignment_1, tokens"):
        MANIFEST.check_graph(INPUTS, {"logits": OUTPUTS["logits"]})


def test_the_manifest_of_explain_onnx_survives_its_own_json() -> None:
    assert ExplainManifest.from_metadata({EXPLAIN_KEY: EXPLAIN.to_json()}) == EXPLAIN
    assert ExplainManifest.from_metadata({}) is None  # schema 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{}", "explain.onnx's manifest has schema None"),
        (EXPLAIN.to_json().replace('"fp32"', "32"), "not a JSON object"),
        (EXPLAIN.to_json().replace("0.5", '"a"'), r"wrong at golden\.fp32\.maps\.map_1\.0"),
    ],
)
def test_a_manifest_of_explain_onnx_that_cannot_be_read_is_refused(text: str, reason: str) -> None:
    with pytest.raises(BadArtifact, match=reason):
        ExplainManifest.from_metadata({EXPLAIN_KEY: text})


def test_the_golden_maps_of_a_pair_are_those_of_the_models_precision() -> None:
    assert golden_maps(MANIFEST, EXPLAIN) is MAPS
    with pytest.raises(BadArtifact, match="goes with fp32 files, not with int8"):
        golden_maps(dataclasses.replace(MANIFEST, precision="int8"), EXPLAIN)


def test_files_of_different_weights_are_no_pair() -> None:
    older = Manifest.from_json(schema_1())
    assert golden_maps(older, None) is None
    for model, other in (
        (MANIFEST, dataclasses.replace(EXPLAIN, weights_id="b" * 64)),
        (MANIFEST, None),
        (older, EXPLAIN),
    ):
        with pytest.raises(BadArtifact, match="made from different weights"):
            golden_maps(model, other)


@pytest.mark.parametrize(
    ("maps", "fits"),
    [
        ({"map_1": [[0.5, -2.0]]}, True),
        ({"map_1": [[0.51, -2.01]], "map_2": [[1.0]]}, True),
        ({"map_1": [[0.53, -2.0]]}, False),  # 0.01 of the largest is allowed
        ({"map_1": [[float("nan"), -2.0]]}, False),
        ({"map_1": [[0.5, -2.0, 0.0]]}, False),
        ({"map_2": [[0.5, -2.0]]}, False),
    ],
)
def test_golden_maps_are_compared_relative_to_the_largest_number(maps: dict, fits: bool) -> None:
    arrays = {name: np.array(values, np.float32) for name, values in maps.items()}
    if fits:
        MAPS.check(arrays)
        return
    with pytest.raises(BadArtifact, match=r"self-test failed: explain\.onnx's"):
        MAPS.check(arrays)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.8832471875950136, "0.8832"),
        (9.834766387939453e-07, "9.835e-07"),
        (2749067, "2,749,067"),
        (True, "yes"),
        (None, "-"),
        ({}, "-"),
        ([1, 3, 8], "1, 3, 8"),
        ({"top_1": 0.123456, "by": {"a": 1.0, "b": 2.5}}, "top 1: 0.1235\nby: a: 1, b: 2.5"),
    ],
)
def test_values_are_shown_to_people_with_four_digits(value: object, text: str) -> None:
    assert readable(value) == text


def test_a_sample_takes_numbers_from_the_whole_array() -> None:
    assert sample(np.arange(3)).tolist() == [0, 1, 2]
    taken = sample(np.arange(32 * 32).reshape(1, 32, 32))
    assert (taken.size, taken[0], taken[-1]) == (64, 0, 1023)
    assert (np.diff(taken) > 0).all()


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


def test_a_model_without_tokens_needs_neither_them_nor_stages() -> None:
    text = changed(head="none", stages=[], outputs=[{"name": "logits", "role": "logits"}])
    assert not Manifest.from_json(text).has_tokens


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        (
            {"outputs": [{"name": "logits", "role": "logits"}], "stages": []},
            "does not list the outputs tokens",
        ),
        (
            {"stages": [], "outputs": [{"name": n, "role": n} for n in ("logits", "tokens")]},
            "no stage whose grid they fill",
        ),
        ({"head": "first_order"}, "no map of its last stage"),
        ({"head": "curved"}, "wrong at head"),
    ],
)
def test_what_the_head_needs_must_be_there(members: dict, reason: str) -> None:
    with pytest.raises(BadArtifact, match=reason):
        Manifest.from_json(changed(**members))
