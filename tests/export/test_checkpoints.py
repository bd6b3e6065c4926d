"""Any checkpoint layout loads; anything else is refused with one line, and never runs code."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from export.checkpoints import CheckpointError, load
from export.paca import VARIANTS, PaCaConfig, PaCaViT, StageConfig

NAME = "paca_cifar_32"  # the smallest named variant
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def weights() -> Weights:
    torch.manual_seed(0)
    return PaCaViT(VARIANTS[NAME]).state_dict()


def averaged(weights: Weights) -> Weights:
    return {key: value + 1 for key, value in weights.items()}


def other_head(weights: Weights, classes: int) -> Weights:
    return weights | {
        "head.weight": torch.zeros(classes, weights["head.weight"].shape[1]),
        "head.bias": torch.zeros(classes),
    }


LAYOUTS: dict[str, Callable[[Weights], object]] = {
    "plain": lambda w: w,
    "state_dict": lambda w: {"state_dict": w, "epoch": 3},
    "model": lambda w: {"model": w},
    "DistributedDataParallel": lambda w: {f"module.{key}": value for key, value in w.items()},
    "compiled, nested, DDP": lambda w: {
        "model": {"state_dict": {f"module._orig_mod.{key}": value for key, value in w.items()}}
    },
    "timm": lambda w: {
        "epoch": 9,
        "arch": NAME,
        "state_dict": w,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "version": 2,
        "args": argparse.Namespace(model=NAME, lr=1e-3, mean=(0.5, 0.5, 0.5)),
        "metric": np.float64(81.5),
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_known_layout_loads(layout: str, weights: Weights, tmp_path: Path) -> None:
    torch.save(LAYOUTS[layout](weights), tmp_path / "c.pth")
    loaded = load(tmp_path / "c.pth", NAME)
    assert loaded.model.config == VARIANTS[NAME]
    assert all(torch.equal(value, weights[key]) for key, value in loaded.model.state_dict().items())
    assert not loaded.model.training
    assert len(loaded.sha256) == 64


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema"])
def test_averaged_weights_win_and_it_is_said(key: str, weights: Weights, tmp_path: Path) -> None:
    torch.save({"state_dict": weights, "model": weights, key: averaged(weights)}, tmp_path / "c.pth.tar")
    loaded = load(tmp_path / "c.pth.tar", NAME)
    assert torch.equal(loaded.model.head.weight, weights["head.weight"] + 1)
    assert loaded.notes == (f"took the averaged weights ({key})",)


def test_an_empty_average_is_passed_over(weights: Weights, tmp_path: Path) -> None:
    torch.save({"state_dict": weights, "state_dict_ema": None}, tmp_path / "c.pth")
    assert torch.equal(load(tmp_path / "c.pth", NAME).model.head.weight, weights["head.weight"])


def test_files_of_the_old_format_load(weights: Weights, tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(load(tmp_path / "c.pth", NAME).model.head.weight, weights["head.weight"])


def test_safetensors_load_by_content_whatever_the_suffix(weights: Weights, tmp_path: Path) -> None:
    save_file(weights, tmp_path / "c.bin")
    assert torch.equal(load(tmp_path / "c.bin", NAME).model.head.weight, weights["head.weight"])


def test_our_own_files_carry_config_labels_temperature_and_figures(tmp_path: Path) -> None:
    config = PaCaConfig(
        "odd",
        (StageConfig(6, 1, 3, 2, "linear"), StageConfig(10, 1, 5)),
        num_classes=2,
        image_size=48,
        patch_size=2,
    )
    half = {key: value.half() for key, value in PaCaViT(config).state_dict().items()}
    metadata = {
        "paca.config": json.dumps(config.to_dict()),
        "paca.labels": json.dumps(["cat", "dög"]),
        "paca.temperature": "1.25",
        "paca.training": json.dumps({"metrics": {"test": {"accuracy": 0.9}}}),
    }
    save_file(half, tmp_path / "c.safetensors", metadata)
    loaded = load(tmp_path / "c.safetensors")
    assert loaded.model.config == config
    assert (loaded.labels, loaded.temperature, loaded.notes) == (("cat", "dög"), 1.25, ())
    assert loaded.accuracy == {"test": {"accuracy": 0.9}}
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}


def test_half_precision_weights_become_float32(weights: Weights, tmp_path: Path) -> None:
    torch.save(
        {key: value.bfloat16() if value.is_floating_point() else value for key, value in weights.items()},
        tmp_path / "c.pth",
    )
    assert load(tmp_path / "c.pth", NAME).model.head.weight.dtype == torch.float32


def test_the_variant_is_recognised_and_what_weights_do_not_tell_is_said(
    weights: Weights, tmp_path: Path
) -> None:
    torch.save(other_head(weights, 7), tmp_path / "c.pth")
    loaded = load(tmp_path / "c.pth")
    assert loaded.model.config == dataclasses.replace(VARIANTS[NAME], num_classes=7)
    (note,) = loaded.notes
    assert NAME in note
    assert "heads and picture size" in note


def test_the_number_of_classes_is_the_heads_unless_another_was_asked_for(
    weights: Weights, tmp_path: Path
) -> None:
    torch.save(other_head(weights, 3), tmp_path / "c.pth")
    assert load(tmp_path / "c.pth", NAME).model.config.num_classes == 3
    assert load(tmp_path / "c.pth", NAME, 3).model.config.num_classes == 3
    with pytest.raises(CheckpointError, match="head has 3 classes, not the 5 asked for"):
        load(tmp_path / "c.pth", NAME, 5)


class Malicious:
    """Unpickled carelessly, creates a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.canary,))


class Shell(Malicious):
    def __reduce__(self) -> tuple:
        import os

        return (os.system, (f"touch {self.canary}",))


@pytest.mark.parametrize("attack", [Malicious, Shell])
@pytest.mark.parametrize("old_format", [False, True], ids=["zip", "old"])
def test_a_malicious_pickle_is_refused_and_its_code_never_runs(
    attack: type, old_format: bool, weights: Weights, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    content = {"state_dict": weights, "args": attack(canary)}
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=not old_format)
    with pytest.raises(CheckpointError, match="more than weights"):
        load(tmp_path / "evil.pth", NAME)
    assert not canary.exists()


def test_a_bare_malicious_pickle_named_safetensors_is_refused(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "evil.safetensors").write_bytes(pickle.dumps(Malicious(canary)))
    with pytest.raises(CheckpointError):
        load(tmp_path / "evil.safetensors")
    assert not canary.exists()


def test_a_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"more than weights \(torch.nn.modules.linear.Linear\)"):
        load(tmp_path / "c.pth")


def test_a_pickle_that_contains_itself_is_refused(tmp_path: Path) -> None:
    content: dict = {}
    content["model"] = content
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="holds no weights"):
        load(tmp_path / "c.pth")


REFUSED: dict[str, tuple[Callable[[Weights], object], str]] = {
    "head-less": (
        lambda w: {k: v for k, v in w.items() if not k.startswith("head")},
        "no classifier: there is no head.weight",
    ),
    "detector": (
        lambda w: {
            "state_dict": {f"backbone.{k}": v for k, v in w.items()} | {"roi_head.bbox.weight": torch.ones(2)}
        },
        "detector",
    ),
    "another network": (
        lambda w: {"conv1.weight": torch.ones(2), "head.weight": torch.ones(5, 2)},
        "not the weights of a PaCa-ViT",
    ),
    "a tensor": (lambda w: torch.ones(3), "holds a Tensor, not a dictionary"),
    "empty": (lambda w: {}, "holds no weights"),
    "not finite": (
        lambda w: w | {"norm1.bias": w["norm1.bias"] * float("nan")},
        "norm1.bias has values that are not finite",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_classifier_is_refused_in_one_line(case: str, weights: Weights, tmp_path: Path) -> None:
    make, reason = REFUSED[case]
    torch.save(make(weights), tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=reason) as caught:
        load(tmp_path / "c.pth")
    assert "\n" not in str(caught.value)


def test_missing_unknown_and_misshapen_tensors_are_counted_and_named(
    weights: Weights, tmp_path: Path
) -> None:
    changed = {k: v for k, v in weights.items() if k != "norm2.bias"} | {
        "spare": torch.ones(1),
        "norm1.bias": torch.ones(3),
    }
    torch.save(changed, tmp_path / "c.pth")
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "c.pth", NAME)
    assert (
        "1 tensors missing (such as norm2.bias), 1 unknown (such as spare), 1 of another shape (such as "
        "norm1.bias)" in str(caught.value)
    )


def test_weights_of_another_variant_are_refused_naming_theirs(weights: Weights, tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=f"do not fit paca_small_128: .*; they look like {NAME}"):
        load(tmp_path / "c.pth", "paca_small_128")


def test_an_unknown_variant_suggests_the_nearest(weights: Weights, tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=f"did you mean '{NAME}'"):
        load(tmp_path / "c.pth", "paca_cifar32")


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_truncated_file_is_refused_in_one_line(
    kept: float, suffix: str, weights: Weights, tmp_path: Path
) -> None:
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    if suffix == "pth":
        torch.save(weights, whole)
    else:
        save_file(weights, whole)
    data = whole.read_bytes()
    cut.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(CheckpointError, match="no whole") as caught:
        load(cut)
    assert "\n" not in str(caught.value)


def test_other_files_and_no_file_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("not weights at all, only text")
    with zipfile.ZipFile(tmp_path / "archive.pth", "w") as archive:
        archive.writestr("a.txt", "hello")
    for path, reason in (
        (tmp_path / "text.pth", "no whole PyTorch checkpoint"),
        (tmp_path / "archive.pth", "no whole PyTorch checkpoint"),
        (tmp_path, "Is a directory"),
        (tmp_path / "absent.pth", "No such file"),
    ):
        with pytest.raises(CheckpointError, match=reason) as caught:
            load(path)
        assert "\n" not in str(caught.value)
