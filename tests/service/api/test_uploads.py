"""The forms a request body may have, its limits, and that nothing else gets through."""

import asyncio
import base64
import json

import pytest
from starlette.datastructures import Headers

from service.api import uploads
from service.api.problems import SlowUpload
from service.api.uploads import read_body, unpack
from service.errors import ClientGone, MalformedRequest, NotAnImage, PacaError, TooLarge

JPEG = b"\xff\xd8\xff\xe0 a picture, as far as this layer looks"
PNG = b"\x89PNG\r\n\x1a\n and so on"
WEBP = b"RIFF\x00\x00\x00\x00WEBP and so on"
TEXT = base64.b64encode(JPEG).decode()


def from_json(document, limit=16):
    return unpack(json.dumps(document).encode(), "application/json", limit)


def received(*chunks: bytes | None, headers=None, limit=100, pause=0.0):
    """What read_body makes of a body that comes in these chunks; None = the client leaves."""
    messages = [
        {"type": "http.disconnect"}
        if chunk is None
        else {"type": "http.request", "body": chunk, "more_body": i < len(chunks) - 1}
        for i, chunk in enumerate(chunks)
    ]

    async def receive():
        await asyncio.sleep(pause)
        return messages.pop(0)

    return asyncio.run(read_body(Headers(headers or {}), receive, limit)), messages


@pytest.mark.parametrize("body", [JPEG, PNG, WEBP])
@pytest.mark.parametrize(
    "declared",
    [
        "image/jpeg",
        "",
        "application/x-www-form-urlencoded",
        "text/plain",
        "application/json",
        "multipart/form-data",
    ],
)
def test_bytes_that_look_like_a_picture_are_one_whatever_they_are_declared(body, declared):
    assert unpack(body, declared, 16) == uploads.Upload([body])


@pytest.mark.parametrize("declared", ["image/png", "application/octet-stream", "image/jpeg; charset=x"])
def test_bytes_declared_a_picture_are_left_to_the_decoder(declared):
    assert unpack(b"hello", declared, 16).pictures == [b"hello"]


@pytest.mark.parametrize("declared", ["", "text/html", "application/x-www-form-urlencoded"])
def test_anything_else_is_not_accepted(declared):
    with pytest.raises(NotAnImage):
        unpack(b"image=hello", declared, 16)


def test_an_empty_body_is_malformed():
    with pytest.raises(MalformedRequest, match="empty"):
        unpack(b"", "image/jpeg", 16)


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        f"data:image/jpeg;base64,{TEXT}",
        TEXT.replace("+", "-").replace("/", "_"),
        TEXT[:10] + "\r\n" + TEXT[10:],
    ],
)
def test_json_carries_base64_plain_as_a_data_uri_url_safe_or_wrapped(text):
    assert from_json({"image": text}).pictures == [JPEG]


def test_a_byte_order_mark_before_json_is_passed_over():
    body = b"\xef\xbb\xbf" + json.dumps({"image": TEXT}).encode()
    assert unpack(body, "application/json", 16).pictures == [JPEG]


def test_a_list_is_answered_with_a_list_even_of_one():
    assert from_json({"images": [TEXT]}).several
    assert from_json({"inputs": [TEXT, TEXT]}).pictures == [JPEG, JPEG]
    assert not from_json({"inputs": TEXT}).several


def test_parameters_stand_beside_the_pictures():
    assert from_json({"inputs": TEXT, "parameters": {"top_k": 3}}).values == {"top_k": 3}


def test_one_bad_text_among_several_is_that_ones_error():
    first, second, third = from_json({"images": [TEXT, "§§§", 5]}).pictures
    assert first == JPEG
    assert isinstance(second, PacaError)
    assert isinstance(third, PacaError)


@pytest.mark.parametrize(
    "document",
    [
        [],
        "x",
        None,
        {},
        {"image": 5},
        {"image": "§"},
        {"image": "abc"},
        {"image": [TEXT]},
        {"images": TEXT},
        {"images": []},
        {"image": TEXT, "images": [TEXT]},
        {"image": TEXT, "colour": 1},
        {"image": TEXT, "parameters": [1]},
        {"image": "data:image/jpeg," + TEXT},
    ],
)
def test_json_of_another_shape_is_malformed(document):
    with pytest.raises(MalformedRequest):
        from_json(document)


@pytest.mark.parametrize(
    "address", ["http://localhost/x.jpg", "https://a/b.png", "file:///etc/passwd", "ftp://a/b"]
)
def test_addresses_are_not_fetched(address):
    with pytest.raises(MalformedRequest, match="fetches no addresses"):
        from_json({"image": address})


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff\xfe{}",
        b'{"image": NaN}',
        b'{"image": "a", "image": "b"}',
        b"[" * 400 + b"]" * 400,
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" + b"[]," * 1000 + b"[]]",
        b'{"image": ' + b"9" * 5000 + b"}",
        b'{"image": "\\ud800"}',
    ],
)
def test_hostile_json_is_malformed(body):
    with pytest.raises(MalformedRequest):
        unpack(body, "application/json", 16)


def test_more_pictures_than_allowed_are_refused_with_the_limit():
    with pytest.raises(TooLarge) as refusal:
        from_json({"images": [TEXT] * 4}, limit=3)
    assert refusal.value.details == {"limit": "max_images", "value": 3}


def test_a_body_comes_in_any_number_of_pieces():
    assert received(b"ab", b"", b"c")[0] == b"abc"


def test_a_body_too_large_by_its_own_word_is_refused_unread():
    with pytest.raises(TooLarge):
        received(b"x", headers={"content-length": "101"})


def test_a_body_that_turns_out_too_large_is_refused_there():
    with pytest.raises(TooLarge):
        received(b"x" * 60, b"x" * 60, b"never read", headers={"content-length": "10"})


def test_exactly_the_limit_is_taken():
    assert len(received(b"x" * 100)[0]) == 100


def test_a_client_that_leaves_is_gone():
    with pytest.raises(ClientGone):
        received(b"x", None)


def test_a_body_that_does_not_come_in_time_is_refused(monkeypatch):
    monkeypatch.setattr(uploads, "BODY_SECONDS", 0.05)
    with pytest.raises(SlowUpload):
        received(b"x", b"y", b"z", pause=0.04)


def test_a_large_body_that_comes_fast_enough_has_more_time(monkeypatch):
    monkeypatch.setattr(uploads, "BODY_SECONDS", 0.05)
    monkeypatch.setattr(uploads, "BODY_RATE", 100)
    assert len(received(*[b"x" * 20] * 4, pause=0.04)[0]) == 80


def test_compressed_bodies_are_not_accepted():
    with pytest.raises(NotAnImage):
        received(b"x", headers={"content-encoding": "gzip"})
