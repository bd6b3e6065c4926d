"""The ways to explain, as one table: what each needs of a model, how it makes its map, and how to read it.

A new method is one row of `METHODS` and its function; the server, the command line, the report, the page and
the API's documentation read the table. A method is either a function of what one run gives, or, if it needs
further runs, a generator: it yields altered pictures, is sent their logits, and returns its map. The
mathematics of single-run methods stand in `explain`; who runs the network is `predictor`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from . import explain
from .hiding import blurred, cell, hidden
from .results import Heatmap, MethodInfo

# What a method can need of a model beside a run: its last tokens and what each of them adds, finer maps of
# explain.onnx, clusters, further runs.
TOKENS, GRADIENTS, CLUSTERS, RUNS = "tokens", "gradients", "clusters", "runs"
COARSE = 4  # cells along a side of `occlusion`'s first round
REFINED = 12  # cells of the first round that are halved in the second: 16 + 4 * 12 = 64 runs


@dataclass(frozen=True)
class Evidence:
    """What is known of one picture and one explained quantity.

    cam: (h, w), the contributions of the last patches, None where the model has no linear end. maps: stage →
    (H_s, W_s), the gradient maps of explain.onnx, empty where it did not run. weights: (K,) over the logits.
    logits: (K,). tensor: the network's input, (H, W, 3) uint8 or (3, H, W) float32. exact: whether `cam` and
    the bias are the logit.
    """

    cam: np.ndarray | None = None
    maps: Mapping[int, np.ndarray] = field(default_factory=dict)
    weights: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    logits: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    tensor: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 3), np.uint8))
    exact: bool = True

    @property
    def contributions(self) -> np.ndarray:
        """`cam`, of a model that is known to have it."""
        if self.cam is None:
            raise ValueError("this model has no contributions; its plan should have refused the method")
        return self.cam


Probe = Generator[np.ndarray, np.ndarray, Heatmap]  # yields (n, ...) inputs, is sent their (n, K) logits


@dataclass(frozen=True)
class Method:
    """One way to explain.

    needs: of TOKENS, GRADIENTS, CLUSTERS, RUNS. heatmap: the map from one run, None for no map of a class.
    probe: the map from further runs, in place of `heatmap`. complete: the map sums to the logit. fallback:
    the method that answers where the model lacks something. default: whether it may answer when none is
    named, in the table's order. label, title, note: its name, what it shows,
    and how to read it, for people.
    """

    name: str
    label: str
    needs: frozenset[str]
    title: str
    note: str
    class_specific: bool = True
    complete: bool = False
    heatmap: Callable[[Evidence], Heatmap | None] | None = None
    probe: Callable[[Evidence], Probe] | None = None
    fallback: str | None = None
    default: bool = False

    def info(self, fallback: str | None = None) -> MethodInfo:
        """What a response says of the method. fallback: why it answers instead of the one requested."""
        gradients = int(GRADIENTS in self.needs)
        return MethodInfo(self.name, self.class_specific, self.complete, gradients, fallback)


def occlusion(evidence: Evidence) -> Probe:
    """The drop of the explained logit when a place is hidden (Zeiler and Fergus, 2014), on an 8 x 8 grid.

    Every cell of a coarse grid is hidden in turn; those that matter most are split in four and hidden again.
    Signed, its largest magnitude 1. 64 runs.
    """
    base = float(evidence.weights @ evidence.logits)
    soft = blurred(evidence.tensor)
    cells = [(row, column) for row in range(COARSE) for column in range(COARSE)]
    logits = yield np.stack([hidden(evidence.tensor, soft, cell(*place, COARSE)) for place in cells])
    coarse = base - logits @ evidence.weights
    strongest = np.argsort(-np.abs(coarse), kind="stable")[:REFINED].tolist()
    halves = [
        (2 * cells[i][0] + down, 2 * cells[i][1] + across)
        for i in strongest
        for down in (0, 1)
        for across in (0, 1)
    ]
    logits = yield np.stack([hidden(evidence.tensor, soft, cell(*place, 2 * COARSE)) for place in halves])
    values = np.repeat(np.repeat(coarse.reshape(COARSE, COARSE) / 4, 2, axis=0), 2, axis=1)
    for (row, column), drop in zip(halves, base - logits @ evidence.weights, strict=True):
        values[row, column] = drop
    largest = float(np.abs(values).max())
    scaled = values / largest if largest > 0 else values
    return Heatmap(scaled.astype(np.float32), signed=True, units="relative")


def _of(methods: Iterable[Method]) -> dict[str, Method]:
    return {method.name: method for method in methods}


METHODS = _of(
    (
        Method(
            "focus",
            "Focus",
            frozenset({TOKENS, GRADIENTS}),
            title="Where the evidence lies",
            note="Where the last stage sees evidence for the class, times where the gradients of earlier "
            "stages "
            "hold it. It shows places, not amounts: the numbers have no unit and do not add up to the logit.",
            heatmap=lambda e: Heatmap(explain.focus(e.contributions, e.maps), signed=False, units="relative"),
            fallback="cam",
            default=True,
        ),
        Method(
            "cam",
            "CAM",
            frozenset({TOKENS}),
            title="What each patch adds",
            note="Each number is what one patch of the last grid adds to the logit. Together with the bias "
            "they "
            "are the logit, exactly. It says what the model read there, but patches near the end of the "
            "network "
            "have seen the whole picture, so evidence can sit beside the thing it stands for.",
            complete=True,
            heatmap=lambda e: Heatmap(e.contributions, signed=True, units="logit" if e.exact else "relative"),
            default=True,
        ),
        Method(
            "fine",
            "Fine",
            frozenset({TOKENS, GRADIENTS}),
            title="The finest map",
            note="The contributions of the last stage and the gradient maps of earlier ones, brought to one "
            "scale "
            "and added. It ranks single patches best and looks grainy. The numbers have no unit; blue places "
            "speak against the class.",
            heatmap=lambda e: Heatmap(explain.fine(e.contributions, e.maps), signed=True, units="relative"),
            fallback="cam",
        ),
        Method(
            "grouping",
            "Grouping",
            frozenset({CLUSTERS}),
            title="What the model groups together",
            note="What the model groups together before it decides. It does not depend on any class and is "
            "no "
            "reason for the prediction.",
            class_specific=False,
            heatmap=lambda _: None,
        ),
        Method(
            "occlusion",
            "Occlusion",
            frozenset({RUNS}),
            title="What hiding a place changes",
            note="How much the logit drops when a place is blurred: 64 further runs of the network, so it is "
            "slow. "
            "It needs nothing of the network but its logits. The numbers are scaled to 1; blue places speak "
            "against the class.",
            probe=occlusion,
            default=True,
        ),
    )
)


def available(offers: Iterable[str]) -> list[Method]:
    """The methods of a model that offers these of TOKENS, GRADIENTS, CLUSTERS; the default first."""
    offered = {RUNS, *offers}
    return [method for method in METHODS.values() if method.needs <= offered]
