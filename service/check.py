"""Whether a map is right about the picture: hide what it shows, hide as much elsewhere, compare the answers.

A deletion test (Samek et al. 2017; Petsiuk et al. 2018) of one step, with its own control. It is written as a
generator of pictures to run, as methods of several runs are, so that the server, the command line and
`paca evaluate` run it in their own ways.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

import numpy as np

from .hiding import blurred, elsewhere, hidden, strongest
from .results import Check

PART = 0.1  # of the picture's area that is hidden
CONTROLS = 4  # random places: a map without knowledge passes one time in five


def check(
    tensor: np.ndarray, values: np.ndarray, score: float, scores: Callable[[np.ndarray], np.ndarray]
) -> Generator[np.ndarray, np.ndarray, Check]:
    """Yields the altered pictures once, is sent their logits (n, K), and returns what hiding changed.

    tensor: the network's input. values: (h, w), the map; where it is positive it speaks for the class. score:
    of the class on the whole picture, 0 to 1. scores: logits (n, K) → that score of each. A map that is
    nowhere positive shows nothing: it fails without a run.
    """
    region = strongest(values, PART)
    if not region.any():
        return Check(score, 0.0, 0.0, passed=False)
    soft = blurred(tensor)
    logits = yield np.stack([hidden(tensor, soft, place) for place in (region, *elsewhere(region, CONTROLS))])
    drop, *controls = (score - scores(logits)).tolist()
    return Check(score, drop, sum(controls) / len(controls), passed=drop > max(0.0, *controls))
