"""A request is checked against a model: names become ids, and what cannot be is refused with what to send
instead."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from service.artifact import ExplainInfo, Manifest, Preprocessing, StageInfo
from service.errors import BadParameter
from service.options import ExplainOptions
from service.plan import class_id, make_plan, offers

MANIFEST = Manifest(
    name="toy",
    variant="toy",
    config={},
    labels=("tench, Tinca tinca", "golf ball", "Gas_pump"),
    preprocessing=Preprocessing((32, 32), "stretch", 1.0, "bilinear", (0, 0, 0), (1, 1, 1)),
    stages=(
        StageInfo(1, (8, 8), 4, 1, 0, None, None),
        StageInfo(2, (4, 4), 4, 1, 5, "conv", "assignment_2"),
        StageInfo(3, (2, 2), 4, 1, 0, None, None),
    ),
    input="uint8",
    dynamic_size=False,
    precision="fp32",
    opset=23,
    attention_nodes=3,
    parameters=1,
    macs=1,
    checkpoint_sha256=None,
    tools={},
    explain=ExplainInfo(2, (2,)),
)


@pytest.mark.parametrize(
    ("target", "number"),
    [
        ("golf ball", 1),
        ("GOLF BALL", 1),
        (" golf_ball ", 1),
        (1, 1),
        ("1", 1),
        ("tench", 0),
        ("tinca tinca", 0),
        ("tench, tinca tinca", 0),
    ],
)
def test_a_class_is_found_by_number_name_or_synonym(target: str | int, number: int) -> None:
    assert class_id(target, MANIFEST.labels) == number


def test_labels_with_underscores_are_found_by_their_words() -> None:
    assert class_id("gas pump", MANIFEST.labels) == 2


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("cat", "the model knows: tench"),
        (3, "ids go from 0 to 2"),
        (-1, "ids go from 0 to 2"),
        ("99", "ids go from"),
    ],
)
def test_an_unknown_class_lists_the_known_ones(target: str | int, reason: str) -> None:
    with pytest.raises(BadParameter, match=reason):
        class_id(target, MANIFEST.labels)


def test_an_unknown_class_among_a_thousand_lists_only_some() -> None:
    with pytest.raises(BadParameter, match="and 980 more"):
        class_id("cat", [f"class_{i}" for i in range(1000)])


def test_the_default_shows_the_clusters_of_the_last_stage_that_has_some() -> None:
    asked = make_plan(ExplainOptions(), MANIFEST, has_gradients=True)
    assert asked.stage == 2
    assert asked.outputs == ("tokens", "assignment_2", "features")


def test_only_methods_that_need_gradients_ask_for_features() -> None:
    assert make_plan(ExplainOptions(method="cam"), MANIFEST, True).outputs == ("tokens", "assignment_2")
    assert make_plan(ExplainOptions(method="focus"), MANIFEST, False).gradients is False


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (ExplainOptions(stage=1), "stage 1 has no clusters; choose one of: 2"),
        (ExplainOptions(stage=9), "stage 9 has no clusters"),
        (ExplainOptions(contrast="cat"), "the model knows"),
        (ExplainOptions(effect=True), "without cluster effects"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_send_instead(options: ExplainOptions, reason: str) -> None:
    with pytest.raises(BadParameter, match=reason):
        make_plan(options, MANIFEST, has_gradients=True)


def test_without_targets_the_top_class_is_explained() -> None:
    plan = make_plan(ExplainOptions(contrast="runner_up"), MANIFEST, has_gradients=False)
    assert plan.pairs(np.array([1.0, 3.0, 2.0])) == [(1, 2)]


def test_where_classes_are_named_by_numbers_a_text_is_a_name_and_a_number_an_id() -> None:
    labels = tuple(sorted(str(i) for i in range(1, 103)))  # 1, 10, 100, 101, 102, 11, …
    assert labels[class_id("2", labels)] == "2"
    assert class_id(2, labels) == 2
    assert labels[class_id(2, labels)] == "100"


def test_a_text_of_digits_that_names_no_class_is_an_id() -> None:
    assert class_id("2", MANIFEST.labels) == 2


@pytest.mark.parametrize("name", ["focus", "fine"])
def test_without_gradients_cam_answers_and_says_why(name: str) -> None:
    plan = make_plan(ExplainOptions(method=name), MANIFEST, has_gradients=False)
    assert plan.method.name == "cam"
    assert "explain.onnx" in (plan.fallback or "")


def test_nobody_who_named_no_method_is_told_of_a_fallback() -> None:
    plan = make_plan(ExplainOptions(), MANIFEST, has_gradients=False)
    assert (plan.method.name, plan.fallback) == ("cam", None)


def test_a_model_without_clusters_cannot_answer_by_grouping() -> None:
    manifest = replace(MANIFEST, stages=MANIFEST.stages[2:])
    with pytest.raises(BadParameter, match="choose one of: focus, cam, fine, occlusion"):
        make_plan(ExplainOptions(method="grouping"), manifest, has_gradients=True)


FIRST_ORDER = replace(MANIFEST, stages=MANIFEST.stages[:1], explain=ExplainInfo(1, (1,)), head="first_order")
NO_HEAD = replace(MANIFEST, stages=(), explain=None, head="none")


def test_a_model_without_tokens_is_explained_by_hiding_places() -> None:
    plan = make_plan(ExplainOptions(), NO_HEAD, has_gradients=False)
    assert (plan.method.name, plan.outputs, plan.render) == ("occlusion", (), ("overlay",))
    assert not plan.info.complete
    with pytest.raises(BadParameter, match="cannot answer by cam; choose one of: occlusion"):
        make_plan(ExplainOptions(method="cam"), NO_HEAD, has_gradients=False)
    with pytest.raises(BadParameter, match="no tokens to make parts of"):
        make_plan(ExplainOptions(render=("parts",)), NO_HEAD, has_gradients=False)


def test_a_head_that_is_not_linear_takes_cam_from_explain_onnx_and_says_so() -> None:
    plan = make_plan(ExplainOptions(), FIRST_ORDER, has_gradients=True)
    assert (plan.method.name, plan.gradients, plan.first_order) == ("cam", True, True)
    assert (plan.info.complete, plan.info.gradients) == (False, 1)
    assert plan.outputs == ("tokens", "features")
    assert "first order" in plan.remarks[0]
    assert offers(FIRST_ORDER, has_gradients=True) == {"tokens"}


def test_without_explain_onnx_such_a_head_is_explained_by_hiding_places() -> None:
    plan = make_plan(ExplainOptions(), FIRST_ORDER, has_gradients=False)
    assert (plan.method.name, plan.gradients, plan.remarks) == ("occlusion", False, ())


def test_hiding_places_needs_no_gradients_of_a_head_that_is_not_linear() -> None:
    plan = make_plan(ExplainOptions(method="occlusion", render=("overlay",)), FIRST_ORDER, has_gradients=True)
    assert (plan.gradients, plan.remarks) == (False, ())
