"""The recipes by name: which pictures, which network, how to train it. Reading is `data`'s, training
`loop`'s, everything after it `run`'s."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..annotate import preprocessing
from ..checkpoints import CheckpointError, load
from ..paca.clustering import CLUSTERINGS
from ..paca.config import PaCaConfig, variant
from ..paca.model import PaCaViT
from .augment import Augmentation
from .data import DataError, Pictures, read_cifar10, read_imagenette
from .drawings import draw
from .foreign import PACK, Foreign, read_foreign
from .loop import Recipe, usual
from .object_free import object_free
from .objective import Objective
from .open_world import Material, OpenWorld, Supervision
from .split import SPLIT, split_folder, tail
from .teacher import lessons


@dataclass(frozen=True)
class Options:
    """What a user chooses. start_from: a checkpoint whose weights begin the training, with a new head.
    clustering: of every stage that clusters."""

    data: Path
    out: Path
    epochs: int | None = None
    start_from: Path | None = None
    clustering: str | None = None
    seed: int = 1


@dataclass(frozen=True)
class Plan:
    """A training that is ready to start. held_out: for selection, temperature and int8 calibration. tests:
    scored once, at the end. weights: what to start from. objective: where classes are not all. foreign:
    pictures of none of the classes, for novelty. notes: what the user should know of the data. record: the
    split to write down, where it was made here."""

    config: PaCaConfig
    recipe: Recipe
    train: Pictures
    held_out: Pictures
    tests: dict[str, Pictures] = field(default_factory=dict)
    weights: dict[str, Tensor] | None = None
    notes: tuple[str, ...] = ()
    record: dict[str, Any] | None = None
    objective: Callable[[PaCaViT], Objective] | None = None
    foreign: Foreign | None = None


def imagenette(options: Options) -> Plan:
    """Ten classes of real photos at 128 px. The last tenth of the training pack is held out; the validation
    pack is scored once.

    128 px in training brought nothing that 96 px does not, since crops show things larger than the whole
    pictures served (Touvron et al. 2019).
    """
    base = base_of(options, "paca_small_128")
    base = dataclasses.replace(base, config=dataclasses.replace(base.config, pool="gated"))
    train, validation = read_imagenette(options.data, preprocessing(base.config))
    kept, held_out = tail(train, 0.1)
    sizes = ((0.45, 80), (1.0, 96)) if base.weights else ((0.4, 64), (1.0, 96))
    recipe = Recipe(
        epochs=options.epochs or 48,
        lr=1.5e-3 if base.weights else 2e-3,
        seed=options.seed,
        sizes=sizes,
        locality=True,
    )
    return _plan(base, recipe, kept, held_out, {"validation": validation})


EMBEDDED = Recipe(
    epochs=100,
    batch=48,
    lr=1e-3,
    sizes=((0.35, 64), (0.7, 80), (1.0, 96)),
    locality=True,
    augmentation=Augmentation(blur=0.25, jpeg=0.3),
    supervision=Supervision(),
)
DRAWINGS, OBJECT_FREE = 540, 2500


def embedded(options: Options) -> Plan:
    """The model that ships: Imagenette's ten classes, foreign photos, a teacher, clusters that compete.

    Give --from the weights shipped before: what fits of them is the start. The kinds and sources of the
    varied pack that `foreign` keeps back are not read for training.
    """
    base = base_of(options, "paca_small_128")
    config = variant("paca_compete_128")
    train, validation = read_imagenette(options.data, config.image_size)
    kept, held_out = tail(train, 0.1)
    recipe = dataclasses.replace(EMBEDDED, epochs=options.epochs or EMBEDDED.epochs, seed=options.seed)
    foreign = read_foreign(options.data / PACK, config.image_size)
    material = embedded_material(foreign.train, kept, base)
    return dataclasses.replace(
        _plan(dataclasses.replace(base, config=config), recipe, kept, held_out, {"validation": validation}),
        objective=lambda model: open_world(material, recipe, model),
        foreign=foreign,
    )


def embedded_material(foreign: Pictures, kept: Pictures, base: Base) -> Material:
    """What the embedded model learns from: known photos, foreign ones, drawings, photos without their
    object, and the teacher's answers, which a cache keeps."""
    side = base.config.image_size
    plain = [draw(DRAWINGS, side)]
    if base.weights and base.labels == kept.classes:
        model = PaCaViT(base.config)
        model.load_state_dict(base.weights)
        plain.append(object_free(model, kept, OBJECT_FREE))
    answers = lessons({"known": kept.images, "foreign": foreign.images}, cache_folder())
    return Material(
        kept,
        torch.from_numpy(foreign.images),
        torch.from_numpy(np.concatenate(plain)),
        (answers["known"], answers["foreign"]),
    )


def open_world(material: Material, recipe: Recipe, model: PaCaViT) -> OpenWorld:
    """The objective of a recipe with supervision."""
    assert recipe.supervision is not None
    device = next(model.parameters()).device
    return OpenWorld(material, recipe.supervision, usual(recipe, material.known, device), model)


def cache_folder() -> Path:
    """Where answers that take minutes are kept: $XDG_CACHE_HOME/paca, by default ~/.cache/paca."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paca"


def cifar10(options: Options) -> Plan:
    """The comparison of clusterings: the same small network, recipe and pictures for every kind. A twentieth
    of the training pack is held out.

    From a checkpoint (the common trunk of `benchmarks/clusterings.py`): a gentler rate for fewer epochs, and
    every clustering learned anew.
    """
    base = base_of(options, "paca_cifar_32")
    side = base.config.image_size
    train, tests = read_cifar10(options.data, preprocessing(base.config))
    kept, held_out = tail(train, 0.05)
    augmentation = Augmentation(scale=(0.5, 1.0), jitter=0.2, erase_side=(0.2, 0.5))
    recipe = Recipe(
        epochs=options.epochs or 24,
        batch=128,
        seed=options.seed,
        sizes=((0.5, side * 3 // 4), (1.0, side)),
        augmentation=augmentation,
    )
    if base.weights:
        base = dataclasses.replace(
            base, weights={k: v for k, v in base.weights.items() if ".clustering." not in k}
        )
        recipe = dataclasses.replace(recipe, epochs=options.epochs or 4, lr=1e-3, warmup=0.5)
    return _plan(base, recipe, kept, held_out, tests)


def folder(options: Options) -> Plan:
    """A user's own pictures, one sub-folder a class: the parts that the folder has, else a fifth of each
    class is held out, which `run` writes down in `split.json`.

    From a checkpoint: a gentle rate for few epochs; from scratch: the rate of Imagenette for many. Both stop
    early.
    """
    base = base_of(options, "paca_small_128")
    side = base.config.image_size
    split = split_folder(options.data, preprocessing(base.config), options.out / SPLIT, 0.2, options.seed)
    if base.weights:
        recipe = Recipe(
            epochs=options.epochs or 40,
            lr=5e-4,
            warmup=2,
            patience=12,
            sizes=((0.5, side * 3 // 4), (1.0, side)),
        )
    else:
        recipe = Recipe(
            epochs=options.epochs or 120,
            lr=1e-3,
            patience=40,
            sizes=((0.4, side // 2), (0.8, side * 3 // 4), (1.0, side)),
        )
    recipe = dataclasses.replace(recipe, batch=32, balance=True, ema=0.99, seed=options.seed)
    made = _plan(base, recipe, split.train, split.held_out, split.tests)
    return dataclasses.replace(made, notes=split.notes, record=split.record)


RECIPES: dict[str, Callable[[Options], Plan]] = {
    "imagenette": imagenette,
    "cifar10": cifar10,
    "folder": folder,
    "embedded": embedded,
}


def plan(name: str, options: Options) -> Plan:
    """The named recipe made ready; DataError for an unknown name, a checkpoint or data that it cannot use."""
    if name not in RECIPES:
        raise DataError(f"unknown recipe {name!r}; choose {', '.join(RECIPES)}")
    return RECIPES[name](options)


@dataclass(frozen=True)
class Base:
    """The network before its classes are known, and where it starts from."""

    config: PaCaConfig
    weights: dict[str, Tensor]
    labels: tuple[str, ...]


def base_of(options: Options, name: str) -> Base:
    if options.start_from:
        try:
            loaded = load(options.start_from)
        except CheckpointError as error:
            raise DataError(str(error)) from None
        base = Base(loaded.model.config, loaded.model.state_dict(), loaded.labels or ())
    else:
        base = Base(variant(name), {}, ())
    return (
        dataclasses.replace(base, config=with_clustering(base.config, options.clustering))
        if options.clustering
        else base
    )


def with_clustering(config: PaCaConfig, kind: str) -> PaCaConfig:
    """The same network with another clustering in every stage that clusters; the teacher gets one block a
    stage."""
    if kind not in (*CLUSTERINGS, "teacher"):
        raise DataError(f"unknown clustering {kind!r}; choose {', '.join(CLUSTERINGS)}, teacher")
    stages = tuple(
        dataclasses.replace(stage, clustering=kind) if stage.clusters else stage for stage in config.stages
    )
    return dataclasses.replace(
        config, stages=stages, teacher_depths=(1,) * len(stages) if kind == "teacher" else ()
    )


def _plan(
    base: Base, recipe: Recipe, train: Pictures, held_out: Pictures, tests: dict[str, Pictures]
) -> Plan:
    """A head learned for other classes, or for the same in another order, is not kept."""
    weights = {
        k: v for k, v in base.weights.items() if base.labels == train.classes or not k.startswith("head.")
    }
    config = dataclasses.replace(base.config, num_classes=len(train.classes))
    return Plan(config, recipe, train, held_out, tests, weights or None)
