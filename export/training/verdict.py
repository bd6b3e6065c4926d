"""What a result is worth, in words: how sure the figures are, and whether the model should be served. No
printing, no network.

Few pictures say little: every accuracy comes with the interval in which it lies for new pictures of the same
kind (Wilson 1927, "Probable inference, the law of succession, and statistical inference", 95 %).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

from .metrics import Scores

CONFIDENCE = 0.95
WIDE = 0.2  # an interval wider than this says little
WEAK = 0.75  # accuracy; below, more than a quarter of new pictures get a wrong name
SHOWN = 5  # classes named in a line


@dataclass(frozen=True)
class Verdict:
    """worth_serving: better than a guess, and right for at least three of four pictures. lines: the reasons,
    each a sentence."""

    worth_serving: bool
    lines: tuple[str, ...]


def wilson(hits: int, count: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The interval of a share of which `hits` of `count` were seen; (0, 1) where nothing was."""
    if not count:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, room = hits / count, z * z / count
    middle = (share + room / 2) / (1 + room)
    half = z / (1 + room) * ((share * (1 - share) + room / 4) / count) ** 0.5
    return max(middle - half, 0.0), min(middle + half, 1.0)


def interval(scores: Scores) -> tuple[float, float]:
    """Of the accuracy."""
    return wilson(sum(row[i] for i, row in enumerate(scores.confusion)), scores.pictures)


def decimals(scores: Scores) -> int:
    """Of a percentage: none where the interval is wider than 5 points."""
    low, high = interval(scores)
    return 0 if high - low > 0.05 else 1


def in_words(scores: Scores) -> str:
    """The accuracy as a number of pictures and an interval: "83 % (25 of 30 pictures; 66 to 93 % of new
    ones)"."""
    low, high = interval(scores)
    hits = sum(row[i] for i, row in enumerate(scores.confusion))
    digits = decimals(scores)
    return (
        f"{100 * scores.accuracy:.{digits}f} % ({hits} of {scores.pictures} pictures; "
        f"{100 * low:.{digits}f} to {100 * high:.{digits}f} % of new ones)"
    )


def judge(scores: Scores, *, improving: bool = False) -> Verdict:
    """Scores of pictures that were not trained on → what to think of them. improving: the last epoch was the
    best one, so that more would help."""
    low, high = interval(scores)
    largest = max(scores.classes, key=lambda c: c.support)
    guess = largest.support / max(scores.pictures, 1)
    lines = []
    chance, weak = low <= guess, scores.accuracy < WEAK
    if chance:
        lines.append(
            f"no better than a guess: {in_words(scores)} are right, and whoever always says "
            f"{largest.label!r} is right for {100 * guess:.0f} %"
        )
    elif weak:
        lines.append(f"weak: only {in_words(scores)} are right")
    if high - low > WIDE:
        lines.append(
            f"{scores.pictures} pictures say little: hold out more before you trust any figure of this model"
        )
    never = [c.label for c in scores.classes if c.support and not c.recall]
    if never:
        shown = ", ".join(never[:SHOWN]) + (", …" if len(never) > SHOWN else "")
        lines.append(f"never right: {len(never)} of {len(scores.classes)} classes ({shown})")
    if improving and (chance or weak):
        lines.append("its last epoch was its best: give it more --epochs, in another --out")
    return Verdict(not (chance or weak), tuple(lines))
