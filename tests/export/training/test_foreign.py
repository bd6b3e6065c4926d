"""Which part of the varied pack may be learned from is fixed, and the parts share no kind."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export.training.data import DataError
from export.training.foreign import CHOICE, PACK, TRAIN, UNSEEN, parts, read_foreign


def labels_and_sources() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    sources = np.repeat(["large", "small a", "small b", "small c", "tiny"], [3000, 500, 400, 300, 50])
    return rng.integers(0, 100, len(sources)), sources


def test_a_fifth_of_the_kinds_and_two_whole_sources_are_unseen() -> None:
    labels, sources = labels_and_sources()
    part = parts(labels, sources, 100)
    kinds = {name: set(labels[(part == name) & (sources == "large")]) for name in (TRAIN, CHOICE, UNSEEN)}
    assert len(kinds[UNSEEN]) == 20
    assert len(kinds[CHOICE]) == 5
    assert not kinds[TRAIN] & kinds[UNSEEN]
    assert not kinds[TRAIN] & kinds[CHOICE]
    whole = [source for source in np.unique(sources) if set(part[sources == source]) == {UNSEEN}]
    assert len(whole) == 2
    assert not {"large", "tiny"} & set(whole)


def test_the_choice_never_changes() -> None:
    labels, sources = labels_and_sources()
    part = parts(labels, sources, 100)
    assert np.array_equal(part, parts(labels, sources, 100))
    assert sorted(set(labels[part == CHOICE].tolist())) == [11, 14, 22, 80, 87]


def test_of_one_source_nothing_is_kept_back_whole() -> None:
    labels, _ = labels_and_sources()
    part = parts(labels[:600], np.full(600, "one"), 100)
    assert set(part) == {TRAIN, CHOICE, UNSEEN}


def test_a_folder_has_a_sub_folder_a_kind_and_of_few_kinds_every_picture_is_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(60):
        kind = tmp_path / f"kind {i % 20}"
        kind.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(kind / f"{i}.png")
    found = read_foreign(tmp_path, 8)
    assert (len(found.train), len(found.choice), len(found.unseen)) == (45, 3, 12)
    assert not set(found.train.labels) & set(found.unseen.labels)
    assert len(read_foreign(tmp_path, 8, most=10).train) == 10
    flat = tmp_path / "kind 0"
    assert [len(p) for p in vars(read_foreign(flat, 8)).values()] == [2, 0, 1]
    with pytest.raises(DataError, match="holds no readable picture"):
        read_foreign(tmp_path / "absent", 8)


def test_a_pack_is_read_in_three_parts(tmp_path: Path) -> None:
    rng, files = np.random.default_rng(0), []
    for _ in range(60):
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(out, "JPEG")
        files.append(out.getvalue())
    kinds: dict[str, Any] = {
        "jpeg": np.frombuffer(b"".join(files), np.uint8),
        "offset": np.cumsum([0, *map(len, files)]),
        "label": np.arange(60) % 20,
        "classes": np.array([f"kind {i}" for i in range(20)]),
    }
    for pack in (kinds, {**kinds, "source": np.repeat("one", 60)}):
        np.savez(tmp_path / PACK, **pack)
        found = read_foreign(tmp_path / PACK, 8)
        assert (len(found.train), len(found.choice), len(found.unseen)) == (45, 3, 12)
