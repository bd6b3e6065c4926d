"""The final file of a training: half the bytes, the same answers, everything the exporter needs."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from export.paca import PaCaViT
from export.training.checkpoint import load_final, save_final
from export.training.data import DataError

LABELS = ("Katze", "chien", "鳥")


def test_what_is_saved_comes_back(tiny: PaCaViT, tmp_path: Path) -> None:
    save_final(tiny, tmp_path / "m.safetensors", LABELS, 1.25, {"recipe": "folder", "seed": 3})
    model, labels, temperature, info = load_final(tmp_path / "m.safetensors")
    assert (labels, temperature, info) == (LABELS, 1.25, {"recipe": "folder", "seed": 3})
    assert model.config == tiny.config
    assert not model.training
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model(x), tiny(x), atol=5e-3, rtol=5e-3)


def test_weights_are_stored_in_half_precision_and_counters_as_they_are(tiny: PaCaViT, tmp_path: Path) -> None:
    save_final(tiny, tmp_path / "m.safetensors", LABELS, 1.0, {})
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        kinds = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    assert {kind for name, kind in kinds.items() if not name.endswith("num_batches_tracked")} == {torch.float16}
    assert {kind for name, kind in kinds.items() if name.endswith("num_batches_tracked")} == {torch.int64}
    assert sorted(metadata) == ["paca.config", "paca.labels", "paca.temperature", "paca.training"]
    assert json.loads(metadata["paca.labels"]) == list(LABELS)


def test_labels_must_fit_the_head(tiny: PaCaViT, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 labels for 3 classes"):
        save_final(tiny, tmp_path / "m.safetensors", ("a", "b"), 1.0, {})


def test_files_of_others_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(DataError, match="cannot be read as a checkpoint"):
        load_final(tmp_path / "broken.safetensors")
    with pytest.raises(DataError, match=r"lacks the metadata paca\.config"):
        load_final(tmp_path / "foreign.safetensors")
