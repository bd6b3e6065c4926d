"""What is a file with weights, and what is none: named, with its remedy. Nothing in a file is ever run."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import decimal
import enum
import gzip
import io
import json
import pathlib
import pickle
import subprocess
import tarfile
import types
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from export.checkpoints import CheckpointError, load
from export.paca import VARIANTS, PaCaViT

NAME = "paca_cifar_32"
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def weights() -> Weights:
    torch.manual_seed(0)
    return PaCaViT(VARIANTS[NAME]).state_dict()


@dataclasses.dataclass
class Settings:
    lr: float = 0.1
    path: Path = Path("data")


@dataclasses.dataclass(slots=True)
class Slots:
    lr: float = 0.1


class Words(dict):
    """A dictionary with attributes, as configuration libraries have them."""


class Mode(enum.Enum):
    TRAIN = 1


BESIDE: dict[str, Callable[[], Any]] = {
    "paths": lambda: {"best_model_path": pathlib.PosixPath("/runs/1"), "pure": pathlib.PurePosixPath("a")},
    "scalars of numpy": lambda: [
        kind(1)
        for kind in (np.float16, np.float32, np.float64, np.int8, np.int32, np.uint8, np.uint64, np.bool_)
    ],
    "text and time of numpy": lambda: [np.str_("x"), np.bytes_(b"x"), np.datetime64("2026-01-01")],
    "arrays": lambda: [np.arange(3), np.zeros((2, 2)), np.array(["a"])],
    "random state": lambda: np.random.get_state(),
    "types of numpy": lambda: {"dtype": np.float32, "other": np.dtype("int16")},
    "namespaces": lambda: argparse.Namespace(out=Path("x"), inner=types.SimpleNamespace(a=1)),
    "collections": lambda: [
        collections.defaultdict(list, {"loss": [1.0]}),
        collections.deque([1, 2], maxlen=3),
        collections.Counter("aab"),
        frozenset({1}),
        range(3),
    ],
    "times": lambda: [datetime.datetime(2026, 1, 1), datetime.timedelta(1), decimal.Decimal("1.5")],
    "identifiers": lambda: uuid.UUID(int=3),
    "own types": lambda: [Settings(), Words(a=1), Mode.TRAIN],
    "a type with slots": lambda: [Slots(), Slots(0.2)],
    "a generator of numpy": lambda: np.random.RandomState(1),
    "a scheduler": lambda: torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.zeros(1)], 0.1), 3),
    "a criterion": lambda: torch.nn.CrossEntropyLoss(label_smoothing=0.1),
    "a version": lambda: torch.torch_version.TorchVersion("2.13"),
}


@pytest.mark.parametrize("kind", BESIDE)
def test_harmless_things_beside_the_weights_do_no_harm(kind: str, weights: Weights, tmp_path: Path) -> None:
    torch.save({"args": BESIDE[kind](), "model": weights}, tmp_path / "c.pth")
    assert torch.equal(load(tmp_path / "c.pth", NAME).model.head.weight, weights["head.weight"])


@pytest.mark.parametrize("kind", ["paths", "scalars of numpy", "own types"])
def test_so_they_do_in_files_of_the_old_format(kind: str, weights: Weights, tmp_path: Path) -> None:
    content = {"args": BESIDE[kind](), "model": weights}
    torch.save(content, tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(load(tmp_path / "c.pth", NAME).model.head.weight, weights["head.weight"])


class Popen:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (subprocess.Popen, (["touch", str(self.canary)],))


class Evaluated(Popen):
    def __reduce__(self) -> tuple[Any, ...]:
        return (eval, (f"open({str(self.canary)!r}, 'w')",))


class Built(Popen):
    """Runs its code when its state is set."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Settings, (), {"lr": Evaluated(self.canary)})


@pytest.mark.parametrize("attack", [Popen, Evaluated, Built])
def test_what_could_run_code_is_named_with_its_remedy_and_not_run(
    attack: type[Popen], weights: Weights, tmp_path: Path
) -> None:
    torch.save({"model": weights, "args": attack(tmp_path / "canary")}, tmp_path / "c.pth")
    with pytest.raises(
        CheckpointError, match=r"more than weights .*torch\.save\(model\.state_dict\(\)"
    ) as caught:
        load(tmp_path / "c.pth", NAME)
    assert not (tmp_path / "canary").exists()
    assert "weights_only" not in str(caught.value)


def test_a_mapping_whose_own_methods_were_replaced_is_read_as_a_mapping(
    weights: Weights, tmp_path: Path
) -> None:
    class Odd:
        def __reduce__(self) -> tuple[Any, ...]:
            return (collections.OrderedDict, (), {"items": 1, "keys": 2}, None, iter(weights.items()))

    torch.save(Odd(), tmp_path / "c.pth")
    assert torch.equal(load(tmp_path / "c.pth", NAME).model.head.weight, weights["head.weight"])


def tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pth"), io.BytesIO())


def torch_script(path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path)


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights.pth", b"")


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 94398112\n"
OTHERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "Git LFS": (lambda p: p.write_text(LFS), "is a Git LFS pointer, not the file itself; run `git lfs pull`"),
    "HTML": (
        lambda p: p.write_text("\n<!DOCTYPE html>\n<html>"),
        "is a web page, not the file itself; download",
    ),
    "HTML with a mark": (lambda p: p.write_bytes(b"\xef\xbb\xbf<HTML>"), "is a web page"),
    "XML": (lambda p: p.write_text("<?xml version='1.0'?><Error/>"), "the XML answer of a server"),
    "TorchScript": (torch_script, r"is a TorchScript archive.*torch\.jit\.load\('c\.pth'\)\.state_dict\(\)"),
    "gzip": (lambda p: p.write_bytes(gzip.compress(b"x")), "is a gzip archive; unpack it"),
    "tar": (tar, "is a tar archive; unpack it"),
    "zip": (zipped, "a zip archive that holds weights.pth; unpack it"),
    "NumPy archive": (lambda p: np.savez(p.open("wb"), a=np.zeros(1)), "a NumPy archive that holds a.npy"),
    "a plain pickle": (
        lambda p: p.write_bytes(pickle.dumps({"a": 1})),
        "pickle that torch.save did not write",
    ),
    "HDF5": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "is an HDF5 file"),
    "GGUF": (lambda p: p.write_bytes(b"GGUF" + bytes(99)), "is a GGUF file"),
    "JSON": (lambda p: p.write_text('{"architectures": ["X"]}'), "is JSON text, not weights"),
    "empty": (lambda p: p.write_bytes(b""), "no whole PyTorch checkpoint"),
}


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_checkpoint_is_called_by_its_name(kind: str, tmp_path: Path) -> None:
    write, reason = OTHERS[kind]
    write(tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=reason) as caught:
        load(tmp_path / "c.pth")
    assert "weights_only" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_onnx_file_is_called_by_its_name(tiny_repository: Path) -> None:
    with pytest.raises(CheckpointError, match="is an ONNX model, which is exported already"):
        load(tiny_repository / "tiny" / "1" / "model.onnx")


@pytest.fixture
def sharded(weights: Weights, tmp_path: Path) -> Path:
    """A checkpoint in three files, as Hugging Face writes them; one of them by torch.save."""
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2)] + ["pytorch_model-00003-of-00003.bin"]
    keys = sorted(weights)
    where = {key: names[i % 3] for i, key in enumerate(keys)}
    for name in names:
        part = {key: weights[key].clone() for key in keys if where[key] == name}
        (torch.save if name.endswith(".bin") else save_file)(part, tmp_path / name)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}, indent=2))
    return index


def test_a_checkpoint_in_several_files_is_read_by_its_index(sharded: Path, weights: Weights) -> None:
    loaded = load(sharded, NAME)
    assert all(torch.equal(value, weights[key]) for key, value in loaded.model.state_dict().items())
    before = loaded.sha256
    save_file({"head.bias": weights["head.bias"] + 1}, sharded.with_name("extra.safetensors"))
    index = json.loads(sharded.read_text())
    index["weight_map"]["head.bias"] = "extra.safetensors"
    sharded.write_text(json.dumps(index))
    assert load(sharded, NAME).sha256 != before


def test_missing_parts_are_named(sharded: Path) -> None:
    sharded.with_name("model-00002-of-00003.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"in 3 files, and 1 of them are not beside it: model-00002-of-00003"
    ):
        load(sharded, NAME)


def test_one_part_alone_says_what_to_give(sharded: Path) -> None:
    with pytest.raises(CheckpointError, match=r"it is part 1 of 3: give model\.safetensors\.index\.json"):
        load(sharded.with_name("model-00001-of-00003.safetensors"), NAME)


def test_an_index_never_leads_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "x.index.json").write_text(json.dumps({"weight_map": {"head.bias": "../secret.bin"}}))
    with pytest.raises(CheckpointError, match="outside of its folder"):
        load(tmp_path / "x.index.json")


def test_a_folder_says_which_file_in_it_to_give(sharded: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"Is a directory; give the file in it, such as model\.safetensors"
    ):
        load(sharded.parent)
