"""Which form an `Accept` header gets."""

import pytest

from service.api.negotiate import choose
from service.api.problems import NotAcceptable

OFFERS = ("application/json", "text/html", "image/webp", "image/png")


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        (None, "application/json"),
        ("", "application/json"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("image/*", "image/webp"),
        ("image/png", "image/png"),
        ("IMAGE/PNG", "image/png"),
        ("image/avif, image/png;q=0.5", "image/png"),
        ("image/*, image/webp;q=0", "image/png"),
        ("application/json;q=0.1, image/*;q=0.9", "image/webp"),
        ("text/html,application/xhtml+xml,image/avif,image/webp,*/*;q=0.8", "text/html"),
        ("application/json; charset=utf-8", "application/json"),
        ("image/png;q=x, */*;q=0.1", "application/json"),
    ],
)
def test_the_preferred_form_is_chosen(accept, form):
    assert choose(accept, OFFERS) == form


@pytest.mark.parametrize(
    "accept", ["image/gif", "application/xml", "application/json;q=0", "nonsense", "video/*"]
)
def test_where_nothing_is_acceptable_it_says_what_there_is(accept):
    with pytest.raises(NotAcceptable, match="application/json, text/html"):
        choose(accept, OFFERS)
