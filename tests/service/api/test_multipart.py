"""multipart/form-data: what browsers, curl and attackers send."""

import pytest

from service.api.multipart import parse_multipart
from service.errors import MalformedRequest, TooLarge

KIND = "multipart/form-data; boundary=XX"


def part(name: bytes, content: bytes, extra: bytes = b"") -> bytes:
    return (
        b'--XX\r\nContent-Disposition: form-data; name="'
        + name
        + b'"'
        + extra
        + b"\r\n\r\n"
        + content
        + b"\r\n"
    )


def parsed(*parts: bytes, end: bytes = b"--XX--\r\n", kind: str = KIND, limit: int = 3):
    return parse_multipart(b"".join(parts) + end, kind, limit)


def test_files_come_in_order_and_fields_by_name():
    body = (
        part(b"file", b"one", b'; filename="a.jpg"'),
        part(b"top_k", b"3"),
        part(b"file", b"two\r\n--X"),
        part(b"target", b"a"),
        part(b"target", b"b"),
    )
    assert parsed(*body) == ([b"one", b"two\r\n--X"], {"top_k": ["3"], "target": ["a", "b"]})


@pytest.mark.parametrize(
    "name", [b"../../etc/passwd", b"a\\b", b"x" * 5000, "\u202egpj.exe".encode(), b"%00"]
)
def test_a_files_name_means_nothing(name):
    assert parsed(part(b"file", b"one", b'; filename="' + name + b'"'))[0] == [b"one"]


def test_an_empty_file_is_handed_on():
    assert parsed(part(b"file", b""))[0] == [b""]


@pytest.mark.parametrize(
    "kind",
    ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=" + "X" * 500],
)
def test_a_body_without_a_usable_boundary_is_malformed(kind):
    with pytest.raises(MalformedRequest):
        parsed(part(b"file", b"one"), kind=kind)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        b"--YY\r\n\r\n",
        part(b"file", b"one"),
        part(b"file", b"one")[:-10],
        b"--XX\r\nContent-Type: image/png\r\n\r\nx\r\n--XX--",
        b"--XX\r\nContent-Disposition: attachment\r\n\r\nx\r\n--XX--",
        b"--XX\r\n\xff\xff: 1\r\n\r\nx\r\n--XX--",
        part(b"photo", b"one", b'; filename="a.jpg"') + b"--XX--",
        part(b"top_k", b"3") + b"--XX--",
        part(b"file", b"x") + part(b"top_k", b"\xff\xfe") + b"--XX--",
    ],
)
def test_a_body_that_breaks_the_rules_is_malformed(body):
    with pytest.raises(MalformedRequest):
        parsed(body, end=b"")


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        (part(b"file", b"x") * 4, "max_images"),
        (part(b"top_k", b"x" * 5000), "max_field_bytes"),
        (b"".join(part(b"f%d" % i, b"") for i in range(70)), "max_fields"),
    ],
)
def test_too_much_of_anything_is_refused_with_the_limit(body, limit):
    with pytest.raises(TooLarge) as refusal:
        parsed(body)
    assert refusal.value.details["limit"] == limit


@pytest.mark.parametrize("headers", [b"X: y\r\n" * 20, b"X: " + b"y" * 20_000 + b"\r\n"])
def test_the_headers_of_a_part_are_bounded(headers):
    with pytest.raises(MalformedRequest):
        parsed(b"--XX\r\n" + headers + b'Content-Disposition: form-data; name="file"\r\n\r\nx\r\n')
