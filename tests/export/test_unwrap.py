"""The network's weights are found wherever trainers put them, and it is said which were taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from export.checkpoints import CheckpointError, load
from export.paca import VARIANTS, PaCaViT

NAME = "paca_cifar_32"  # the smallest named variant
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def model() -> PaCaViT:
    torch.manual_seed(0)
    return PaCaViT(VARIANTS[NAME])


@pytest.fixture(scope="module")
def weights(model: PaCaViT) -> Weights:
    return model.state_dict()


def prefixed(weights: Weights, prefix: str) -> Weights:
    return {prefix + key: value for key, value in weights.items()}


def more(weights: Weights) -> Weights:
    """Other weights of the same network."""
    return {key: value + 1 for key, value in weights.items()}


def profiled(weights: Weights) -> Weights:
    """What thop leaves in every module's state."""
    modules = {key.rpartition(".")[0] for key in weights} | {""}
    counters = {f"{m}.{n}".lstrip("."): torch.zeros(1, dtype=torch.float64) for m in modules for n in THOP}
    return weights | counters


def mmpretrain(weights: Weights) -> Weights:
    backbone = {f"backbone.{k}": v for k, v in weights.items() if not k.startswith("head.")}
    return backbone | {f"head.fc.{end}": weights[f"head.{end}"] for end in ("weight", "bias")}


def renamed_head(weights: Weights, name: str) -> Weights:
    return {k.replace("head.", f"{name}.") if k.startswith("head.") else k: v for k, v in weights.items()}


THOP = ("total_ops", "total_params")
LIGHTNING = {"epoch": 3, "global_step": 9, "pytorch-lightning_version": "2.5", "callbacks": {}, "loops": {}}
LAYOUTS: dict[str, Callable[[Weights], Any]] = {
    "PyTorch's tutorial": lambda w: {
        "epoch": 5,
        "model_state_dict": w,
        "optimizer_state_dict": {"state": {}},
    },
    "net": lambda w: {"net": w, "acc": 93.1},
    "any name, deep down": lambda w: {"checkpoint": {"content": {"my_network": w}}},
    "in a list": lambda w: [w, {"lr": 0.1}],
    "DeepSpeed": lambda w: {"module": w, "ds_version": "0.16"},
    "Lightning": lambda w: {**LIGHTNING, "state_dict": prefixed(w, "model.")},
    "Lightning, other attribute, criterion and metrics": lambda w: {
        **LIGHTNING,
        "state_dict": prefixed(w, "net._orig_mod.")
        | {"criterion.weight": torch.ones(10), "train_acc.total": torch.zeros(())},
    },
    "criterion in the network": lambda w: (
        w | {"criterion.weight": torch.ones(10), "loss_fn.pos_weight": torch.ones(3)}
    ),
    "several wrappers": lambda w: prefixed(w, "module.model._orig_mod.module."),
    "FSDP": lambda w: {
        "_fsdp_wrapped_module." + k.replace("stage1.", "stage1._checkpoint_wrapped_module."): v
        for k, v in w.items()
    },
    "compiled stages": lambda w: {k.replace("stage2.", "stage2._orig_mod."): v for k, v in w.items()},
    "thop": profiled,
    "thop, nested and wrapped": lambda w: {"model": prefixed(profiled(w), "module.")},
    "mmpretrain": lambda w: {"meta": {"epoch": 1}, "state_dict": mmpretrain(w)},
    "backbone and head in mappings of their own": lambda w: {
        "backbone": {k: v for k, v in w.items() if not k.startswith("head.")},
        "head": {end: w[f"head.{end}"] for end in ("weight", "bias")},
    },
    "head called classifier": lambda w: renamed_head(w, "classifier"),
    "head called fc": lambda w: {"model": renamed_head(w, "fc")},
    "parameters": lambda w: {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in w.items()},
    "arrays": lambda w: {k: v.numpy() for k, v in w.items()},
    "without BatchNorm's counters": lambda w: {
        k: v for k, v in w.items() if not k.endswith("num_batches_tracked")
    },
    "momenta of the same names": lambda w: {
        "optimizer": {"exp_avg": more(w)},
        "weights": w,
        "grads": more(w),
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_weights_are_found_wherever_trainers_put_them(
    layout: str, weights: Weights, tmp_path: Path
) -> None:
    torch.save(LAYOUTS[layout](weights), tmp_path / "c.pth")
    for name in (NAME, None):
        loaded = load(tmp_path / "c.pth", name)
        assert all(torch.equal(value, weights[key]) for key, value in loaded.model.state_dict().items())


def test_it_is_said_where_the_weights_were_and_what_was_left_out(weights: Weights, tmp_path: Path) -> None:
    torch.save({"state_dict": prefixed(weights, "model.") | {"crit.w": torch.ones(3)}}, tmp_path / "c.pth")
    assert load(tmp_path / "c.pth", NAME).notes == (
        "took the weights under state_dict.model: they fit",
        "left out what is no part of the network: crit",
    )


def averaged_model(model: PaCaViT, updates: int) -> Weights:
    average = AveragedModel(model)
    for _ in range(updates):
        average.update_parameters(model)
    return average.state_dict()


AVERAGES: dict[str, Callable[[Weights], Weights]] = {
    "model_ema": more,
    "ema_state_dict": lambda w: prefixed(more(w), "module."),
    "swa_model": more,
    "averaged_model": lambda w: {"n_averaged": torch.tensor(7)} | prefixed(more(w), "module."),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_a_whole_average_is_taken_before_the_weights_it_averages(
    name: str, weights: Weights, tmp_path: Path
) -> None:
    torch.save({"model": weights, name: AVERAGES[name](weights)}, tmp_path / "c.pth")
    loaded = load(tmp_path / "c.pth", NAME)
    assert torch.equal(loaded.model.head.weight, weights["head.weight"] + 1)
    assert loaded.notes == (f"took the averaged weights ({name})",)


def test_averages_beside_the_network_in_one_mapping_are_taken(weights: Weights, tmp_path: Path) -> None:
    both = prefixed(weights, "online_model.") | prefixed(more(weights), "ema_model.")
    torch.save(both | {"initted": torch.tensor(True), "step": torch.tensor(4)}, tmp_path / "c.pth")
    loaded = load(tmp_path / "c.pth", NAME)
    assert torch.equal(loaded.model.head.weight, weights["head.weight"] + 1)
    assert loaded.notes == ("took the averaged weights (ema_model)",)


def test_pytorchs_averaged_model_alone_loads(model: PaCaViT, weights: Weights, tmp_path: Path) -> None:
    torch.save(averaged_model(model, updates=2), tmp_path / "c.pth")
    assert torch.allclose(load(tmp_path / "c.pth", NAME).model.head.weight, weights["head.weight"])


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (lambda w: {}, "it is empty"),
        (lambda w: None, "it is empty"),
        (lambda w: {k: v for k, v in more(w).items() if "mlp" not in k}, "tensors missing"),
        (lambda w: {"head.weight": more(w)["head.weight"]}, "it holds no whole network"),
        (lambda w: {k: v * float("nan") if v.is_floating_point() else v for k, v in w.items()}, "not finite"),
        (lambda w: {"n_averaged": torch.tensor(0)} | prefixed(more(w), "module."), "never averaged"),
    ],
    ids=["empty", "none", "cut", "head alone", "not finite", "never averaged"],
)
def test_an_average_that_is_not_whole_is_passed_over_and_it_is_said(
    broken: Callable[[Weights], Any], reason: str, weights: Weights, tmp_path: Path
) -> None:
    torch.save({"model_ema": broken(weights), "model": weights}, tmp_path / "c.pth")
    loaded = load(tmp_path / "c.pth", NAME)
    assert torch.equal(loaded.model.head.weight, weights["head.weight"])
    assert loaded.notes[-1].startswith("passed over model_ema: ")
    assert reason in loaded.notes[-1]


def test_lightnings_weight_averaging_keeps_the_average_in_the_usual_place(
    weights: Weights, tmp_path: Path
) -> None:
    content = {
        **LIGHTNING,
        "state_dict": prefixed(more(weights), "model."),
        "current_model_state": prefixed(weights, "model."),
        "averaging_state": {"n_averaged": torch.tensor(3)},
    }
    torch.save(content, tmp_path / "c.ckpt")
    loaded = load(tmp_path / "c.ckpt", NAME)
    assert torch.equal(loaded.model.head.weight, weights["head.weight"] + 1)
    assert "those under current_model_state.model fit too" in loaded.notes[0]


def test_the_best_is_taken_before_the_last_and_the_pupil_before_the_teacher(
    weights: Weights, tmp_path: Path
) -> None:
    torch.save({"model": more(weights), "best_model": weights}, tmp_path / "best.pth")
    torch.save(prefixed(more(weights), "teacher.") | prefixed(weights, "student."), tmp_path / "two.pth")
    for file in ("best.pth", "two.pth"):
        loaded = load(tmp_path / file, NAME)
        assert torch.equal(loaded.model.head.weight, weights["head.weight"])
        assert "fit too, and are others" in loaded.notes[0]


def test_tensors_that_may_change_what_the_network_says_are_not_left_out(
    weights: Weights, tmp_path: Path
) -> None:
    torch.save(
        weights | {"pos_embed": torch.ones(1, 4, 8), "stage1.0.scale": torch.ones(1)}, tmp_path / "c.pth"
    )
    with pytest.raises(CheckpointError, match="2 unknown"):
        load(tmp_path / "c.pth", NAME)


def test_two_possible_heads_are_not_guessed_at(weights: Weights, tmp_path: Path) -> None:
    backbone = {k: v for k, v in weights.items() if not k.startswith("head.")}
    width = weights["head.weight"].shape[1]
    heads = {f"head.{name}.weight": torch.ones(3, width) for name in ("fc1", "fc2")}
    torch.save(prefixed(backbone, "backbone.") | heads, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"there is no head\.weight"):
        load(tmp_path / "c.pth", NAME)


def test_another_network_is_refused_with_what_was_looked_for(tmp_path: Path) -> None:
    torch.save(
        {"state_dict": {"conv1.weight": torch.ones(2), "fc.weight": torch.ones(5, 2)}}, tmp_path / "c.pth"
    )
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "c.pth")
    assert str(caught.value) == (
        "these are not the weights of a PaCa-ViT: there is no stage1.0.norm1_before.weight, under any prefix;"
        " the file holds 2 tensors under state_dict, such as conv1.weight, fc.weight"
    )


def test_a_file_without_tensors_says_what_it_holds(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="holds no weights, only epoch, lr"):
        load(tmp_path / "c.pth")


def test_what_fits_nearly_is_named_with_its_place(weights: Weights, tmp_path: Path) -> None:
    torch.save({"net": {k: v for k, v in weights.items() if k != "norm2.bias"}}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"the weights \(under net\) do not fit .*norm2.bias"):
        load(tmp_path / "c.pth", NAME)


def test_integers_of_numpy_are_weights_too_and_text_is_not(weights: Weights, tmp_path: Path) -> None:
    torch.save({"model": weights, "names": np.array(["a", "b"]), "counts": np.arange(3)}, tmp_path / "c.pth")
    assert torch.equal(load(tmp_path / "c.pth", NAME).model.head.weight, weights["head.weight"])
