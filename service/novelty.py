"""How unlike the known pictures one is, from the outputs of one forward pass. numpy only; fitted by `export`.

The raw value is the energy (Liu et al. 2020) plus one linear or quadratic term on the pooled token, each
scaled by its spread over held-out pictures. The score is one minus the conformal p-value (Bates et al. 2023):
the share of held-out known pictures that look less novel. It is no promise to notice everything foreign.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from .errors import BadArtifact

NOVELTY_KEY = "paca.novelty"
THRESHOLD = 0.95  # 1 in 20 known pictures is flagged
MAX_TEXT = 100_000  # characters of the statistics in a file


@dataclass(frozen=True)
class Statistics:
    """What scoring needs, float32. scale: (2, 2), mean and spread of energy and of the term on held-out
    pictures. sorted_scores: their raw values, ascending. probe: (C + 1,), where foreign pictures were given.
    means, axes, precision: (K + 1, R), (C, R), (2, R, R) of the relative Mahalanobis distance, where not.
    measured: what it is worth, name → value, e.g. the share of foreign pictures that is flagged."""

    scale: np.ndarray
    sorted_scores: np.ndarray
    probe: np.ndarray | None = None
    means: np.ndarray | None = None
    axes: np.ndarray | None = None
    precision: np.ndarray | None = None
    measured: Mapping[str, float] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """What is added to the energy."""
        return "energy and a linear probe" if self.probe is not None else "energy and relative Mahalanobis"

    @property
    def facts(self) -> dict[str, Any]:
        """For people: what is added up, how many held-out pictures stand behind it, what it is worth."""
        return {
            "method": self.method,
            "references": len(self.sorted_scores),
            "measured": dict(self.measured),
        }

    def to_text(self) -> str:
        """As it stands in a model's metadata under NOVELTY_KEY."""
        arrays = {
            f.name: {"shape": value.shape, "data": base64.b64encode(value.astype("<f4").tobytes()).decode()}
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), np.ndarray)
        }
        return json.dumps({"arrays": arrays, "measured": dict(self.measured)}, separators=(",", ":"))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], classes: int, width: int) -> Statistics | None:
        """Of a model with so many classes and numbers a token; None where it has none, BadArtifact where they
        do not fit."""
        text = metadata.get(NOVELTY_KEY)
        if text is None:
            return None
        try:
            if len(text) > MAX_TEXT:
                raise ValueError("too large")
            document = json.loads(text)
            arrays = {name: _array(value) for name, value in document["arrays"].items()}
            found = cls(**arrays, measured={k: float(v) for k, v in document["measured"].items()})
            if found.scale.shape != (2, 2) or not (found.scale[1] > 0).all():
                raise ValueError("the scale must be two means and two positive spreads")
            if not len(found.sorted_scores) or (np.diff(found.sorted_scores) < 0).any():
                raise ValueError("the known pictures' values must be sorted")
            found.score(np.zeros((1, classes), np.float32), np.zeros((1, width), np.float32))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
            raise BadArtifact(
                f"the model's novelty statistics cannot be used ({reason}); export it again with `paca "
                "export`"
            ) from None
        return found

    def score(self, logits: np.ndarray, pooled: np.ndarray) -> np.ndarray:
        """logits (n, K), pooled tokens (n, C) → (n,), each the share of known pictures that look less
        novel."""
        below = np.searchsorted(self.sorted_scores, self.raw(logits, pooled), side="left")
        return below / (len(self.sorted_scores) + 1)

    def raw(self, logits: np.ndarray, pooled: np.ndarray) -> np.ndarray:
        """(n,), higher = more novel: the sum of the two terms, each after its scale."""
        terms = np.stack([energy(logits), self.term(pooled)])
        return ((terms - self.scale[0][:, None]) / self.scale[1][:, None]).sum(0)

    def term(self, pooled: np.ndarray) -> np.ndarray:
        """The probe, or the distance to the nearest class less that to all (Ren et al. 2021); (n,) float64:
        a small difference of large numbers."""
        pooled = pooled.astype(np.float64)
        if self.probe is not None:
            return pooled @ self.probe[:-1] + self.probe[-1]
        if self.means is None or self.axes is None or self.precision is None:
            raise ValueError("neither a probe nor class means")
        apart = (pooled @ self.axes)[:, None] - self.means  # (n, K + 1, R), the last from the mean of all
        within = np.einsum("nkr,rs,nks->nk", apart[:, :-1], self.precision[0], apart[:, :-1]).min(1)
        return within - np.einsum("nr,rs,ns->n", apart[:, -1], self.precision[1], apart[:, -1])


def energy(logits: np.ndarray) -> np.ndarray:
    """-log Σ exp(logits), (n, K) → (n,)."""
    top = logits.max(1)
    return -(top + np.log(np.exp(logits - top[:, None]).sum(1)))


def _array(value: Any) -> np.ndarray:
    array = np.frombuffer(base64.b64decode(value["data"], validate=True), "<f4").reshape(value["shape"])
    if not np.isfinite(array).all():
        raise ValueError("a number is not finite")
    return array
