"""The answer's form, chosen by `Accept`: JSON unless the caller prefers a picture or a page."""

from __future__ import annotations

from collections.abc import Sequence

from .problems import NotAcceptable


def choose(accept: str | None, offers: Sequence[str]) -> str:
    """The offered media type (first = default) that `Accept` gives the highest q, the most specific range
    deciding each; NotAcceptable where none has any."""
    if not accept or accept.strip() == "*/*":
        return offers[0]
    ranges = [_range(item) for item in accept[:2000].split(",") if item.strip()]
    weights = {offer: _weight(offer, ranges) for offer in offers}
    best = max(offers, key=lambda offer: weights[offer])
    if weights[best] <= 0:
        raise NotAcceptable(
            f"nothing this request accepts can be answered here; there is: {', '.join(offers)}"
        )
    return best


def _range(item: str) -> tuple[str, float]:
    media, *parameters = (part.strip().lower() for part in item.split(";"))
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return media, min(1.0, max(0.0, float(parameter[2:])))
            except ValueError:
                return media, 0.0
    return media, 1.0


def _weight(offer: str, ranges: list[tuple[str, float]]) -> float:
    family = offer.partition("/")[0] + "/*"
    for accepted in (offer, family, "*/*"):
        found = [q for media, q in ranges if media == accepted]
        if found:
            return max(found)
    return 0.0
