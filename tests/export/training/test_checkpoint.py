"""The final file of a training: half the bytes, the same answers, everything the exporter needs."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from export.checkpoints import load
from export.paca import PaCaViT
from export.training.checkpoint import save_final

LABELS = ("Katze", "chien", "鳥")


def test_what_is_saved_comes_back(tiny: PaCaViT, tmp_path: Path) -> None:
    save_final(tiny, tmp_path / "m.safetensors", LABELS, 1.25, {"recipe": "folder", "seed": 3})
    loaded = load(tmp_path / "m.safetensors")
    assert (loaded.labels, loaded.temperature) == (LABELS, 1.25)
    assert loaded.model.config == tiny.config
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(loaded.model(x), tiny(x), atol=5e-3, rtol=5e-3)


def test_weights_are_stored_in_half_precision_and_counters_as_they_are(tiny: PaCaViT, tmp_path: Path) -> None:
    save_final(tiny, tmp_path / "m.safetensors", LABELS, 1.0, {})
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        kinds = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    assert {kind for name, kind in kinds.items() if not name.endswith("num_batches_tracked")} == {
        torch.float16
    }
    assert {kind for name, kind in kinds.items() if name.endswith("num_batches_tracked")} == {torch.int64}
    assert sorted(metadata) == ["paca.config", "paca.labels", "paca.temperature", "paca.training"]
    assert json.loads(metadata["paca.labels"]) == list(LABELS)


def test_labels_must_fit_the_head(tiny: PaCaViT, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 labels for 3 classes"):
        save_final(tiny, tmp_path / "m.safetensors", ("a", "b"), 1.0, {})
