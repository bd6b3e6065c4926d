"""A request is checked against a model: names become ids, and what cannot be is refused with what to send
instead."""

from __future__ import annotations

import numpy as np
import pytest

from service import compose
from service.artifact import ExplainInfo, Manifest, Preprocessing, StageInfo
from service.errors import BadParameter
from service.options import ExplainOptions

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
    assert compose.class_id(target, MANIFEST.labels) == number


def test_labels_with_underscores_are_found_by_their_words() -> None:
    assert compose.class_id("gas pump", MANIFEST.labels) == 2


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
        compose.class_id(target, MANIFEST.labels)


def test_an_unknown_class_among_a_thousand_lists_only_some() -> None:
    with pytest.raises(BadParameter, match="and 980 more"):
        compose.class_id("cat", [f"class_{i}" for i in range(1000)])


def test_the_default_shows_the_clusters_of_the_last_stage_that_has_some() -> None:
    asked = compose.plan(ExplainOptions(), MANIFEST, has_gradients=True)
    assert asked.stage == 2
    assert asked.outputs == ("tokens", "assignment_2", "features")


def test_only_methods_that_need_gradients_ask_for_features() -> None:
    assert compose.plan(ExplainOptions(method="cam"), MANIFEST, True).outputs == ("tokens", "assignment_2")
    assert compose.plan(ExplainOptions(method="focus"), MANIFEST, False).gradients is False


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (ExplainOptions(method="lime"), "choose one of: focus, cam, fine, grouping"),
        (ExplainOptions(stage=1), "stage 1 has no clusters; choose one of: 2"),
        (ExplainOptions(stage=9), "stage 9 has no clusters"),
        (ExplainOptions(targets=(0, 1, 2, 0, 1, 2)), "at most 5"),
        (ExplainOptions(contrast="cat"), "the model knows"),
        (ExplainOptions(top_clusters=17), "between 0 and 16"),
        (ExplainOptions(alpha=1.5), "alpha must be between 0 and 1"),
        (ExplainOptions(size=5000), "size must be between 16 and 1024"),
        (ExplainOptions(size="huge"), "choose one of: original, model"),
        (ExplainOptions(colormap="jet"), "viridis"),
        (ExplainOptions(format="gif"), "webp, png, jpeg"),
        (ExplainOptions(render=("film",)), "choose one of: overlay"),
        (ExplainOptions(arrays="npz"), "none, f16"),
        (ExplainOptions(effect=True), "without cluster effects"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_send_instead(options: ExplainOptions, reason: str) -> None:
    with pytest.raises(BadParameter, match=reason):
        compose.plan(options, MANIFEST, has_gradients=True)


def test_scores_are_the_softmax_of_logits_over_temperature() -> None:
    p = compose.probabilities(np.array([0.0, np.log(9.0)]), temperature=1.0)
    np.testing.assert_allclose(p, [0.1, 0.9])
    np.testing.assert_allclose(
        compose.probabilities(np.array([0.0, 2 * np.log(3.0)]), temperature=2.0), [0.25, 0.75]
    )


def test_huge_logits_do_not_overflow() -> None:
    assert compose.probabilities(np.array([1e4, 0.0, -1e4]), 1.0).tolist() == [1.0, 0.0, 0.0]


def test_predictions_come_most_probable_first_and_ties_by_class() -> None:
    found = compose.predictions(np.array([1.0, 3.0, 1.0]), MANIFEST, top_k=3)
    assert [p.class_id for p in found] == [1, 0, 2]
    assert found[0].label == "golf ball"
    assert found[0].logit == 3.0


def test_without_targets_the_top_class_is_explained() -> None:
    asked = compose.plan(ExplainOptions(contrast="runner_up"), MANIFEST, False)
    assert compose.questions(asked, np.array([1.0, 3.0, 2.0])) == [(1, 2)]
