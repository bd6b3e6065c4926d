"""The page that can be mailed: complete in itself, safe with any label, honest about what it shows."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from service.methods import METHODS
from service.report import render_report
from service.results import (
    Cluster,
    Completeness,
    ExplainResult,
    Explanation,
    Heatmap,
    ImageInfo,
    MaskInfo,
    Picture,
    Prediction,
    TargetInfo,
    Timings,
)

DOT = Picture("image/png", 1, 1, b"dot")
BALL = TargetInfo("golf ball", 8, 9.1, 0.1)
CLUSTERS = tuple(
    Cluster(2, m, share, area, (3, 4), (0, 0, 9, 9), overlay=DOT)
    for m, share, area in ((17, -0.4, 0.25), (5, 1.2, 0.11))
)
CAM_ANSWER = Explanation(
    BALL,
    METHODS["cam"].info(),
    Completeness(9.0, 0.1, 9.1, 2e-6),
    Heatmap(np.array([[-0.2, 1.4]], np.float32), True, "logit"),
    {"overlay": DOT},
    clusters=CLUSTERS,
)
ANSWER = ExplainResult(
    model="imagenette",
    model_version="1",
    image=ImageInfo(500, 375, "JPEG"),
    timings=Timings(1, 1, 8, 12),
    predictions=(Prediction("golf ball", 8, 0.97, 9.1), Prediction("church", 4, 0.01, 2.0)),
    explanations=(CAM_ANSWER,),
)


class Page(HTMLParser):
    """Collects the text and every address; fails where a tag is not closed."""

    VOID = ("meta", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.add(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def test_is_one_file_without_scripts_or_other_hosts():
    text = render_report(ANSWER, "viridis", DOT)
    page = Page(text)
    assert page.addresses
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not {"script", "link", "iframe"} & page.tags
    assert "url(" not in text
    assert "//" not in re.sub(r"base64,[^\"]*", "", text)


def test_says_what_the_model_said_and_how_it_adds_up():
    text = Page(render_report(ANSWER, "viridis")).text
    for said in (
        "golf ball, 97.0 %",
        "church",
        "500 × 375",
        "Why “golf ball”?",
        "+9.000",
        "bias: +0.100",
        "+9.100",
    ):
        assert said in text


def test_the_colour_bar_has_ends_and_units():
    assert "1.4 against" in Page(render_report(ANSWER, "viridis")).text
    assert "logits each patch adds" in render_report(ANSWER, "viridis")
    relative = replace(
        CAM_ANSWER,
        method=METHODS["focus"].info(),
        completeness=None,
        heatmap=Heatmap(np.eye(2, dtype=np.float32), False, "relative"),
    )
    text = render_report(replace(ANSWER, explanations=(relative,)), "inferno")
    assert "relative: 1 is the strongest place" in text
    assert "#fcffa4" in text
    assert "does not add up to the logit" in text


def test_clusters_come_sorted_by_share():
    text = Page(render_report(ANSWER, "viridis")).text
    assert text.index("+1.200") < text.index("-0.400")
    assert "11.0 %" in text


def test_a_contrast_names_both_classes():
    against = replace(CAM_ANSWER, contrast=TargetInfo("church", 4, 2.0, 0.0))
    text = Page(render_report(replace(ANSWER, explanations=(against,)), "viridis")).text
    assert "Why “golf ball”, and not “church”?" in text
    assert "difference of the two logits" in text


def test_grouping_is_not_sold_as_a_reason():
    alone = Explanation(
        BALL,
        METHODS["grouping"].info(),
        None,
        None,
        {"segmentation": DOT},
        clusters=tuple(replace(c, share=None) for c in CLUSTERS),
    )
    text = Page(render_report(replace(ANSWER, explanations=(alone,)), "viridis")).text
    assert "What the model groups together" in text
    assert "no reason for the prediction" in text
    assert "Why" not in text


def test_warnings_fallbacks_masks_and_effects_are_told():
    told = replace(
        CAM_ANSWER,
        method=METHODS["cam"].info(fallback="no explain.onnx"),
        images={"mask": DOT},
        mask=MaskInfo(0.3, None),
        clusters=tuple(replace(c, effect=0.0125) for c in CLUSTERS),
    )
    text = Page(
        render_report(replace(ANSWER, warnings=("cropped a little",), explanations=(told,)), "viridis")
    ).text
    for said in ("cropped a little", "no explain.onnx", "0.3 of the largest number", "+0.0125"):
        assert said in text


@pytest.mark.parametrize("label", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a & b"])
def test_labels_cannot_become_markup(label: str):
    named = replace(CAM_ANSWER, target=replace(BALL, label=label), contrast=replace(BALL, label=label))
    page = Page(
        render_report(
            replace(
                ANSWER,
                predictions=(Prediction(label, 8, 1.0, 9.1),),
                warnings=(label,),
                explanations=(named,),
            ),
            "viridis",
        )
    )
    assert page.text.count(label) >= 4
    assert "script" not in page.tags
    assert all(address.startswith("data:") for address in page.addresses)


def test_a_blank_map_and_no_predictions_still_make_a_page():
    blank = replace(CAM_ANSWER, heatmap=Heatmap(np.zeros((2, 2), np.float32), False, "relative"), clusters=())
    assert (
        "No prediction"
        in Page(render_report(replace(ANSWER, predictions=(), explanations=(blank,)), "viridis")).text
    )
