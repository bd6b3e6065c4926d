"""Class names: a file's, ImageNet-1k's for published networks, else numbers, and the report says which were
assumed."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from export.labels import assumed, read_labels
from export.paca import PaCaConfig, variant


def test_published_networks_of_a_thousand_classes_speak_imagenet() -> None:
    names, remark = assumed(variant("pacavit_tiny_p2cconv_100_0"))
    assert len(set(names)) == len(names) == 1000
    assert (names[0], names[207], names[999]) == ("tench", "golden retriever", "toilet tissue")
    assert "--labels" in remark


@pytest.mark.parametrize(
    "config",
    [variant("pacavit_tiny_p2cconv_100_0", num_classes=3), variant("paca_small_128", num_classes=1000)],
)
def test_others_get_numbers_and_a_remark(config: PaCaConfig) -> None:
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


NAMES = ("tench", "Äpfel, grün", "gas pump")
FORMS = {
    "byte-order mark": b"\xef\xbb\xbf" + "\r\n".join(NAMES).encode(),
    "UTF-16 of Windows": "\n".join(NAMES).encode("utf-16"),
    "old Mac": "\r".join(NAMES).encode(),
    "letters in two parts": unicodedata.normalize("NFD", "\n".join(NAMES)).encode(),
    "ids before": "\n".join(f"{i},{name}" for i, name in enumerate(NAMES)).encode(),
    "ids from 1, out of order": "2\tÄpfel, grün\n3\tgas pump\n1\ttench\n".encode(),
    "a table": 'id;name\n0;tench\n1;"Äpfel, grün"\n2;gas pump'.encode(),
    "ids behind": "\n".join(f"{name},{i}" for i, name in enumerate(NAMES)).encode(),
    "JSON list": json.dumps(NAMES, indent=1).encode(),
    "JSON by id": json.dumps({str(i): name for i, name in enumerate(NAMES)}).encode(),
    "JSON by name": json.dumps({name: i for i, name in enumerate(NAMES)}).encode(),
    "ImageNet's index": json.dumps({str(i): [f"n0{i}", name] for i, name in enumerate(NAMES)}).encode(),
    "Hugging Face": json.dumps({"id2label": dict(enumerate(NAMES)), "model_type": "x"}).encode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_labels_are_read_in_the_forms_that_people_have(form: str, tmp_path: Path) -> None:
    (tmp_path / "labels").write_bytes(FORMS[form])
    assert read_labels(tmp_path / "labels") == NAMES


def test_names_may_be_numbers_and_hold_marks_that_look_like_line_ends(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("1\n10\n2\na\x0bb\nc\u2028d\n[e]\n", encoding="utf-8")
    assert read_labels(tmp_path / "labels.txt") == ("1", "10", "2", "a\x0bb", "c\u2028d", "[e]")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"0,tench\n2,church", "class ids do not count from 0 or 1 without gaps"),
        (b'{"a": "b"}', "neither a list of names nor an object"),
        (b'["a", 3]', "3 is no name"),
        ("Forêt".encode("latin-1"), "no UTF-8 text; save it as UTF-8"),
    ],
)
def test_labels_that_cannot_be_told_are_refused_in_one_line(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(ValueError, match=reason) as caught:
        read_labels(tmp_path / "labels.txt")
    assert "\n" not in str(caught.value)
