"""A request checked against one model: names became ids, defaults became values, and what cannot be is
refused.

A `Plan` is made once for a request, however many pictures it holds. What is done with it is `predictor`'s and
`assemble`'s work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import explain
from .artifact import Manifest
from .errors import BadParameter
from .methods import CLUSTERS, GRADIENTS, METHODS, TOKENS, Method, available
from .options import ExplainOptions, Target

RUNNER_UP = "runner_up"


@dataclass(frozen=True)
class Plan:
    """targets: class ids, empty = the top class. contrast: class id, RUNNER_UP or None. fallback: why
    `method` is not the one requested. stage: whose clusters, None where the model clusters nowhere.
    gradients: whether explain.onnx must run. outputs: the graph outputs that are needed beside the logits.
    render: the pictures to make."""

    options: ExplainOptions
    method: Method
    fallback: str | None
    targets: tuple[int, ...]
    contrast: int | str | None
    stage: int | None
    gradients: bool
    outputs: tuple[str, ...]
    render: tuple[str, ...]

    def pairs(self, logits: np.ndarray) -> list[tuple[int, int | None]]:
        """(target, class it is contrasted with) of every explanation of one picture. logits: (K,)."""
        targets = self.targets or (int(np.argmax(logits)),)
        contrast = self.contrast
        if isinstance(contrast, str):
            return [(target, explain.runner_up(logits, target)) for target in targets]
        return [(target, contrast) for target in targets]


def offers(manifest: Manifest, has_gradients: bool) -> frozenset[str]:
    """What a model offers to methods: of TOKENS, GRADIENTS, CLUSTERS."""
    return frozenset(
        {TOKENS}
        | ({GRADIENTS} if has_gradients and manifest.explain else set())
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
    gradients = GRADIENTS in method.needs or options.effect
    render = options.render if "render" in options.model_fields_set else _default_render(has)
    if "parts" in render and TOKENS not in has:
        raise BadParameter("this model has no tokens to make parts of; leave parts out of render")
    features = gradients or ("parts" in render and manifest.explain is not None)
    outputs = ("tokens", *([f"assignment_{stage}"] if stage else []), *(["features"] if features else []))
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
