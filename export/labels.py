"""Class names of a model: the user's file, ImageNet-1k's for the published networks, or numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from service.files import read_text
from service.folders import normal

if TYPE_CHECKING:  # reading names needs no torch
    from .paca.config import PaCaConfig

IMAGENET = Path(__file__).with_name(
    "imagenet_labels.txt"
)  # torchvision's list, under imagenet_labels.LICENSE

_ID_FIRST = re.compile(r"(?P<id>\d+)\s*[,;:\t]\s*(?P<name>.+)")
_ID_LAST = re.compile(r"(?P<name>.+?)\s*[,;\t]\s*(?P<id>\d+)")


def read_labels(path: Path) -> tuple[str, ...]:
    """The names in the order of their class ids. Forms: one name a line; lines with the id before or after
    the name, as in tables; JSON: a list, {id: name}, {name: id}, or a configuration with `id2label`. Empty
    lines are left out. ValueError where the file cannot be read, or ids have gaps."""
    try:
        text = read_text(path)
    except OSError as error:
        raise ValueError(f"cannot read the labels in {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(
            f"cannot read the labels in {path}: it is no UTF-8 text; save it as UTF-8, one class name a line"
        ) from None
    try:
        names = _from_json(text) or _from_lines(text)
    except ValueError as error:
        raise ValueError(f"cannot use the labels in {path}: {error}") from None
    return tuple(normal(name.strip()) for name in names)


def _from_json(text: str) -> list[str] | None:
    """None for what is no JSON list or object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        value = value.get("id2label", value)
    if isinstance(value, list):
        return [_name(item) for item in value]
    if not isinstance(value, dict):
        return None
    if all(str(key).isdecimal() for key in value):
        return _by_id([(int(key), _name(name)) for key, name in value.items()])
    if all(isinstance(number, int) for number in value.values()):
        return _by_id([(number, name) for name, number in value.items()])
    raise ValueError("its JSON is neither a list of names nor an object of ids and names")


def _name(item: object) -> str:
    """A name; of [WordNet id, name], as ImageNet's index has them, the name."""
    if isinstance(item, list) and item:
        item = item[-1]
    if not isinstance(item, str):
        raise ValueError(f"{json.dumps(item)[:60]} is no name")
    return item


def _from_lines(text: str) -> list[str]:
    """Only line ends separate names: other marks that Unicode counts as such may stand in a name."""
    lines = [line.strip() for line in re.split("\r\n|\r|\n", text) if line.strip()]
    for pattern in (_ID_FIRST, _ID_LAST):
        for rows in (lines, lines[1:]):  # a table may have a heading
            pairs = [pattern.fullmatch(line) for line in rows]
            if len(rows) > 1 and all(pairs):
                return _by_id([(int(m["id"]), m["name"].strip("\"'")) for m in pairs if m])
    return lines


def _by_id(pairs: list[tuple[int, str]]) -> list[str]:
    """In the order of ids, which count from 0 or from 1."""
    pairs = sorted(pairs)
    ids = [number for number, _ in pairs]
    if ids not in (list(range(len(ids))), list(range(1, len(ids) + 1))):
        raise ValueError("its class ids do not count from 0 or 1 without gaps; give each class one line")
    return [name for _, name in pairs]


def numbered(classes: int) -> tuple[str, ...]:
    """class_0, class_1, ..."""
    return tuple(f"class_{i}" for i in range(classes))


def assumed(config: PaCaConfig) -> tuple[tuple[str, ...], str]:
    """Names for a checkpoint that comes without, and what the report says of them. The published networks of
    1000 classes were trained on ImageNet-1k."""
    if config.name.startswith("pacavit_") and config.num_classes == 1000:
        names = tuple(IMAGENET.read_text(encoding="utf-8").splitlines())
        return (
            names,
            "took ImageNet-1k's class names in their usual order; if the classes are others, give --labels",
        )
    return numbered(config.num_classes), "the classes have no names; give them with --labels"
