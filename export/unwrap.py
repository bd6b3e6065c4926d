"""Which of the values in a checkpoint are the network's weights: the mapping whose keys fit, wherever it lies
and whatever wraps its keys.

Trainers nest weights under names of their own, prefix them (DistributedDataParallel, torch.compile,
Lightning, AveragedModel), split them (mmpretrain's backbone and head) and leave other tensors beside them
(averages, criteria, optimisers, counters of profilers). A list of names never ends; what fits the network is
the network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .weight_files import CheckpointError

Weights = dict[str, Tensor]
ANCHOR = "stage1.0.norm1_before.weight"  # every PaCa-ViT has this tensor; what stands before it is a prefix
MAX_DEPTH = 8  # of mappings in mappings
# parts of a key that wrappers insert anywhere: torch.compile, FSDP, activation checkpointing
INSERTED = re.compile(r"(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# single numbers that tell about the training and take no part in the network: thop, ptflops, AveragedModel,
# ema_pytorch
COUNTERS = re.compile(
    r"(.*\.)?(total_ops|total_params|n_averaged|num_updates|initted|step|decay|__\w+__"
    r"|(\w+_)?(flops|macs|params|ops|counter|calls|steps))"
)
# modules that stand beside a network's own in one mapping, by their first name
COMPANIONS = re.compile(r"\w*(criteri|loss|metric|accuracy|auroc)\w*|(train|val|valid|test|ema)_\w+")
DETECTORS = re.compile(r"(.*\.)?(roi|rpn|bbox|box|mask|decode|auxiliary)_head\..*")
TRUNK = re.compile(r"((stage|transition|norm)\d+|patch_embed|pool|paca_teacher)\..*")
HEAD_NAMES = {"head", "classifier", "cls", "cls_head", "fc"}
AVERAGED = {"ema", "average", "averaged", "averaging", "swa", "polyak", "shadow"}
BEST = {"best"}
LAST_RESORT = {
    "teacher",
    "current",
    "raw",
    "old",
    "previous",
    "prev",
    "initial",
    "init",
    "backup",
    "momentum",
}
NEVER = {"optimizer", "optimizers", "optim", "grad", "grads", "gradients", "exp_avg", "exp_avg_sq"}
SHOWN = 3  # names in a remark


@dataclass(frozen=True)
class Candidate:
    """Weights that may be the network's. where: their place in the file, "" for the top. weights: by the
    network's own names. beside: what stands next to them and is left out. averages: how often AveragedModel
    averaged, where it counted."""

    where: str
    weights: Weights
    beside: tuple[str, ...] = ()
    averages: int | None = None

    @property
    def is_average(self) -> bool:
        words = _words(self.where)
        return self.averages is not None or bool(words & AVERAGED) or any(w.startswith("ema") for w in words)

    @property
    def rank(self) -> int:
        """Averages are what was evaluated, so they win; what is called best comes next."""
        words = _words(self.where)
        return 3 if self.is_average else 0 if words & LAST_RESORT else 2 if words & BEST else 1

    @property
    def flaw(self) -> str | None:
        """Why weights that fit are of no use all the same."""
        if self.averages == 0:
            return "they were never averaged"
        for key, value in self.weights.items():
            if value.is_floating_point() and not value.isfinite().all():
                return f"{key} has values that are not finite: the training diverged or the file is damaged"
        return None


@dataclass(frozen=True)
class Misfit:
    """How weights differ from what a network needs; all empty = they fit. reason: where no network could be
    told from them at all."""

    missing: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()
    reason: str = ""

    def __len__(self) -> int:
        return len(self.missing) + len(self.unknown) + len(self.misshapen) + 10_000 * bool(self.reason)

    def __str__(self) -> str:
        kinds = (
            ("tensors missing", self.missing),
            ("unknown", self.unknown),
            ("of another shape", self.misshapen),
        )
        return self.reason or ", ".join(
            f"{len(keys)} {what} (such as {min(keys)})" for what, keys in kinds if keys
        )


@dataclass(frozen=True)
class Found:
    """The network's weights, float tensors as float32, by the network's own names. where: their place in the
    file. notes: which they are, why, and what was left."""

    weights: Weights
    where: str
    notes: tuple[str, ...] = ()


def find(content: Any, judge: Callable[[Weights], Misfit]) -> Found:
    """The weights in `content` that fit; where none do, those that come nearest, so that the caller can say
    what is wrong. CheckpointError where nothing comes near: what the file holds, and what was looked for."""
    mappings = list(tensor_mappings(content))
    if not mappings:
        keys = ", ".join(str(key) for key, _ in _items(content)[:SHOWN])
        raise CheckpointError("the file holds no weights" + (f", only {keys}" if keys else ""))
    judged = [(c, judge(c.weights)) for where, tensors in mappings for c in _candidates(where, tensors)]
    if all(judged_as for _, judged_as in judged) and len(mappings) > 1:
        judged += [(c, judge(c.weights)) for c in _candidates((), _joined(mappings))]
    if not judged:
        raise CheckpointError(_no_network(mappings))
    fitting = sorted((c for c, misfit in judged if not misfit), key=lambda c: -c.rank)
    if not fitting:
        nearest, _ = min(judged, key=lambda pair: len(pair[1]))
        return Found(nearest.weights, nearest.where)
    flaws = {c.where: flaw for c in fitting if (flaw := c.flaw)}
    taken = next((c for c in fitting if c.where not in flaws), None)
    if taken is None:
        raise CheckpointError(flaws[fitting[0].where])
    flaws |= {c.where: str(misfit) for c, misfit in judged if misfit and c.rank > taken.rank}
    flaws |= _lost_averages(content, mappings, [c.where for c, _ in judged])
    others = [c for c in fitting if c.where not in flaws and not _equal(c.weights, taken.weights)]
    passed = [f"passed over {where}: {flaw}" for where, flaw in flaws.items()]
    return Found(_as_float(taken.weights), taken.where, (*_remarks(taken, others), *passed))


def _remarks(taken: Candidate, others: list[Candidate]) -> list[str]:
    """Which weights were taken, and why."""
    where = taken.where or "the top of the file"
    remarks = []
    if others and taken.is_average:
        remarks.append(f"took the averaged weights ({where})")
    elif others:
        fit_too = _few([c.where or "the top of the file" for c in others])
        remarks.append(f"took the weights under {where}; those under {fit_too} fit too, and are others")
    elif taken.where:
        remarks.append(f"took the weights under {where}: they fit")
    if taken.beside:
        remarks.append(f"left out what is no part of the network: {_few(list(taken.beside))}")
    return remarks


def tensor_mappings(
    content: Any, where: tuple[str, ...] = (), seen: frozenset[int] = frozenset()
) -> Iterator[tuple[tuple[str, ...], Weights]]:
    """Every mapping with tensors in it, and its place; a pickle may contain itself."""
    if id(content) in seen or len(where) > MAX_DEPTH or set(where) & NEVER:
        return
    items = _items(content)
    tensors = {str(k): t for k, v in items if (t := _tensor(v)) is not None}
    if tensors:
        yield where, tensors
    for key, value in items:
        yield from tensor_mappings(value, (*where, str(key)), seen | {id(content)})


def _items(content: Any) -> list[tuple[Any, Any]]:
    """Of a mapping or a short list; not through its own `items`, which a file may have replaced."""
    if isinstance(content, dict):
        return list(dict.items(content))
    return list(enumerate(content)) if isinstance(content, list | tuple) and len(content) <= 100 else []


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(np.array(value))
    return value if isinstance(value, Tensor) else None


def _joined(mappings: list[tuple[tuple[str, ...], Weights]]) -> Weights:
    """One mapping of all: a file may hold each module's weights in a mapping of its own."""
    return {".".join((*where, key)): t for where, tensors in mappings for key, t in tensors.items()}


def _candidates(where: tuple[str, ...], tensors: Weights) -> Iterator[Candidate]:
    """One for each place in the mapping at which a network begins."""
    plain = {INSERTED.sub("", key): value for key, value in tensors.items()}
    numbers = {k: v for k, v in plain.items() if v.numel() == 1 and COUNTERS.fullmatch(k)}
    plain = {k: v for k, v in plain.items() if k not in numbers}
    prefixes = [k.removesuffix(ANCHOR) for k in plain if k == ANCHOR or k.endswith("." + ANCHOR)]
    if prefixes and any(map(DETECTORS.fullmatch, plain)):
        raise CheckpointError(
            "the file holds the backbone of a detector or segmenter, with heads for boxes or masks beside "
            "it, not a classifier"
        )
    for prefix in prefixes:
        weights = {k.removeprefix(prefix): v for k, v in plain.items() if k.startswith(prefix)}
        others = {k: v for k, v in plain.items() if not k.startswith(prefix)}
        for key in [k for k in weights if COMPANIONS.fullmatch(_module(k))]:
            others[key] = weights.pop(key)
        if "head.weight" not in weights:
            _move_head(others, weights)
        beside = {_module(k) for k in others if not any(p and k.startswith(p) for p in prefixes)}
        counted = numbers.get(f"{prefix.removesuffix('module.')}n_averaged")
        yield Candidate(
            ".".join((*where, *(part for part in prefix.split(".") if part not in ("", "module")))),
            weights,
            tuple(sorted(beside)),
            None if counted is None else int(counted),
        )


def _move_head(others: Weights, weights: Weights) -> None:
    """Puts the classifier among `weights` where it has another name, as in mmpretrain's `head.fc` beside
    `backbone`: it is the one linear layer that takes what the last stage gives."""
    norms = [key for key in weights if re.fullmatch(r"norm\d+\.weight", key)]
    if not norms:
        return
    width = len(weights[max(norms)])
    linear = [
        (place, key.removesuffix(".weight"))
        for place in (others, weights)
        for key, value in place.items()
        if value.ndim == 2
        and value.shape[1] == width
        and key.endswith(".weight")
        and not TRUNK.fullmatch(key)
    ]
    if len(linear) > 1:
        linear = [(place, name) for place, name in linear if set(name.split(".")) & HEAD_NAMES]
    if len(linear) == 1:
        place, name = linear[0]
        for end in ("weight", "bias"):
            if f"{name}.{end}" in place:
                weights[f"head.{end}"] = place.pop(f"{name}.{end}")


def _as_float(weights: Weights) -> Weights:
    return {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}


def _equal(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def _lost_averages(
    content: Any, mappings: list[tuple[tuple[str, ...], Weights]], known: list[str]
) -> dict[str, str]:
    """Places where averaged weights were to be expected, and why there are none."""
    empty = [
        str(key) for key, value in _items(content) if value is None or (isinstance(value, dict) and not value)
    ]
    cut = [".".join(where) for where, _ in mappings]
    return {
        where: reason
        for places, reason in ((empty, "it is empty"), (cut, "it holds no whole network"))
        for where in places
        if Candidate(where, {}).is_average and not any(k.startswith(where) for k in known)
    }


def _no_network(mappings: list[tuple[tuple[str, ...], Weights]]) -> str:
    where, tensors = max(mappings, key=lambda pair: len(pair[1]))
    place = f" under {'.'.join(where)}" if where else ""
    return (
        f"these are not the weights of a PaCa-ViT: there is no {ANCHOR}, under any prefix; the file holds "
        f"{len(tensors)} tensors{place}, such as {_few(list(tensors))}"
    )


def _module(key: str) -> str:
    return key.partition(".")[0]


def _words(where: str) -> set[str]:
    return set(re.split(r"[._ ]", where.casefold()))


def _few(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
