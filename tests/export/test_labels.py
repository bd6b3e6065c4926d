"""Class names: a file's, ImageNet-1k's for published networks, else numbers, and the report says which were
assumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.labels import assumed, read_labels
from export.paca import variant


def test_published_networks_of_a_thousand_classes_speak_imagenet() -> None:
    names, remark = assumed(variant("pacavit_tiny_p2cconv_100_0"))
    assert len(set(names)) == len(names) == 1000
    assert (names[0], names[207], names[999]) == ("tench", "golden retriever", "toilet tissue")
    assert "--labels" in remark


@pytest.mark.parametrize(
    "config",
    [variant("pacavit_tiny_p2cconv_100_0", num_classes=3), variant("paca_small_128", num_classes=1000)],
)
def test_others_get_numbers_and_a_remark(config: object) -> None:
    names, remark = assumed(config)
    assert names[:3] == ("class_0", "class_1", "class_2")
    assert "no names" in remark


def test_a_file_gives_one_name_a_line(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("crème brûlée\n\n tabby cat \n", encoding="utf-8")
    assert read_labels(path) == ("crème brûlée", "tabby cat")


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_file_that_is_no_text_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "labels.txt"
    if content:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read the labels in .*labels.txt"):
        read_labels(path)
