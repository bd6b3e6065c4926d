"""A request checked against one model: names became ids, defaults became values, and what cannot be is
refused.

A `Plan` is made once for a request, however many pictures it holds. What is done with it is `predictor`'s and
`assemble`'s work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from . import explain
from .artifact import FIRST_ORDER, Manifest
from .errors import BadParameter
from .methods import CLUSTERS, GRADIENTS, METHODS, TOKENS, Method, available
from .options import ExplainOptions, Target
from .results import MethodInfo

RUNNER_UP = "runner_up"


@dataclass(frozen=True)
class Plan:
    """targets: class ids, empty = the top class. contrast: class id, RUNNER_UP or None. fallback: why
    `method` is not the one requested. stage: whose clusters, None where the model clusters nowhere.
    gradients: whether explain.onnx must run. first_order: whether it gives
    the contributions of the last patches, as the head is not linear. outputs: the graph outputs that are
    needed beside the logits. render: the pictures to make."""

    options: ExplainOptions
    method: Method
    fallback: str | None
    targets: tuple[int, ...]
    contrast: int | str | None
    stage: int | None
    gradients: bool
    outputs: tuple[str, ...]
    render: tuple[str, ...]
    first_order: bool = False

    @property
    def info(self) -> MethodInfo:
        """What a response says of the method."""
        info = self.method.info(self.fallback)
        if not self.first_order or TOKENS not in self.method.needs:
            return info
        return replace(info, complete=False, gradients=1)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of the map must know of this model."""
        if not self.first_order or TOKENS not in self.method.needs:
            return ()
        return (
            "this model's head is not linear: its contributions are of first order at this picture and do "
            "not add up to the logit",
        )

    def pairs(self, logits: np.ndarray) -> list[tuple[int, int | None]]:
        """(target, class it is contrasted with) of every explanation of one picture. logits: (K,)."""
        targets = self.targets or (int(np.argmax(logits)),)
        contrast = self.contrast
        if isinstance(contrast, str):
            return [(target, explain.runner_up(logits, target)) for target in targets]
        return [(target, contrast) for target in targets]


def offers(manifest: Manifest, has_gradients: bool) -> frozenset[str]:
    """What a model offers to methods: of TOKENS, GRADIENTS, CLUSTERS."""
    has_gradients = has_gradients and manifest.explain is not None
    last = manifest.stages[-1].stage if manifest.stages else 0
    finer = [stage for stage in manifest.explain.maps if stage < last] if manifest.explain else []
    return frozenset(
        ({TOKENS} if manifest.has_tokens and (has_gradients or manifest.head != FIRST_ORDER) else set())
        | ({GRADIENTS} if has_gradients and finer else set())
        | ({CLUSTERS} if manifest.clustered_stages else set())
    )


def make_plan(options: ExplainOptions, manifest: Manifest, has_gradients: bool) -> Plan:
    """Checks `options` against a model; BadParameter says which values are valid."""
    contrast = options.contrast
    if contrast is not None and contrast != RUNNER_UP:
        contrast = class_id(contrast, manifest.labels)
    has = offers(manifest, has_gradients)
    if options.effect and not (GRADIENTS in has and manifest.explain and manifest.explain.effects):
        raise BadParameter(
            "this model comes without cluster effects; leave out effect and use share, the part of the "
            "evidence "
            "located in a cluster"
        )
    method, fallback = _method(options.method, has)
    if options.check and not method.class_specific:
        raise BadParameter(f"{method.name} shows no class, so there is nothing to check; leave out check")
    stage = _stage(options, manifest)
    render = options.render if "render" in options.model_fields_set else _default_render(has)
    if "parts" in render and TOKENS not in has:
        raise BadParameter("this model has no tokens to make parts of; leave parts out of render")
    uses_tokens = TOKENS in has and (TOKENS in method.needs or "parts" in render)
    first_order = uses_tokens and manifest.head == FIRST_ORDER
    gradients = GRADIENTS in method.needs or options.effect or first_order
    features = gradients or ("parts" in render and manifest.explain is not None)
    outputs = (
        *(["tokens"] if manifest.has_tokens else []),
        *([f"assignment_{stage}"] if stage else []),
        *(["features"] if features else []),
    )
    return Plan(
        options,
        method,
        fallback,
        targets=tuple(class_id(target, manifest.labels) for target in options.targets),
        contrast=contrast,
        stage=stage,
        gradients=gradients,
        outputs=outputs,
        render=render,
        first_order=first_order,
    )


def _default_render(has: frozenset[str]) -> tuple[str, ...]:
    """The overlay, and the first of what shows a model's own groups that this one has."""
    groups = (("clusters", CLUSTERS), ("parts", TOKENS))
    return ("overlay", *[name for name, needs in groups if needs in has][:1])


def _method(name: str | None, has: frozenset[str]) -> tuple[Method, str | None]:
    """The method that answers, and why it is not the one requested, if so."""
    here = {method.name: method for method in available(has)}
    if name is None:
        return next(method for method in here.values() if method.default), None
    if name in here:
        return here[name], None
    wish = METHODS[name]
    if wish.fallback in here:
        reason = f"this model comes without explain.onnx, which {name} needs; {wish.fallback} answers instead"
        return here[wish.fallback], reason
    raise BadParameter(f"this model cannot answer by {name}; choose one of: {', '.join(here)}")


def class_id(target: Target, labels: Sequence[str]) -> int:
    """A class by id (int) or by text: a label or one of its synonyms, letter case aside, else an id in
    digits.

    BadParameter lists names that exist.
    """
    if isinstance(target, str):
        name = _folded(target)
        for i, label in enumerate(labels):
            if name in (_folded(label), *map(_folded, label.split(","))):
                return i
        if not (target.strip().isdecimal() and len(target) < 8):
            shown = ", ".join(labels[:20])
            more = f" and {len(labels) - 20} more (GET /models/<name>)" if len(labels) > 20 else ""
            raise BadParameter(f"there is no class {target[:60]!r}; the model knows: {shown}{more}")
    number = int(target)
    if not 0 <= number < len(labels):
        last = len(labels) - 1
        raise BadParameter(
            f"there is no class {number}; ids go from 0 to {last}", limit="class_id", value=last
        )
    return number


def _folded(name: str) -> str:
    return name.strip().casefold().replace("_", " ")


def _stage(options: ExplainOptions, manifest: Manifest) -> int | None:
    clustering = [s.stage for s in manifest.clustered_stages]
    if options.stage is not None and options.stage not in clustering:
        stages = ", ".join(map(str, clustering)) or "none, this model does not cluster"
        raise BadParameter(f"stage {options.stage} has no clusters; choose one of: {stages}")
    return options.stage or (clustering[-1] if clustering else None)
