"""Text files in any form that editors write, and whole files out."""

import codecs
from pathlib import Path

import pytest

from service.files import decode_text, read_json, read_text, write_bytes, write_json, write_text

TEXT = "Äpfel\n鯉 魚\n"


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        codecs.BOM_UTF8 + TEXT.encode(),
        codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"),
    ],
    ids=["plain", "utf-8 mark", "utf-16 little", "utf-16 big", "utf-32"],
)
def test_a_byte_order_mark_is_no_part_of_the_text(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(data)
    assert read_text(tmp_path / "t") == decode_text(data) == TEXT


def test_what_is_no_text_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="utf-8"):
        decode_text("Forêt".encode("latin-1"))


def test_json_comes_back_and_keeps_its_letters(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "v.json", {"Äpfel": ["鯉"]})
    assert read_json(tmp_path / "new" / "v.json") == {"Äpfel": ["鯉"]}
    assert "鯉" in read_text(tmp_path / "new" / "v.json")


@pytest.mark.parametrize("content", [b"", b'{"a": [1, 2', b"\xff\xfe\x00", b"[" * 100_000])
def test_half_written_json_is_as_good_as_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "v.json").write_bytes(content)
    assert read_json(tmp_path / "v.json") is None
    assert read_json(tmp_path / "absent.json") is None


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    write_text(tmp_path / "t", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "t", "\ud800")
    with pytest.raises(TypeError):
        write_bytes(tmp_path / "t", "no bytes")  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
    assert read_text(tmp_path / "t") == "old"


def test_a_link_stays_a_link_and_a_device_is_written_into(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_text(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink()
    assert read_text(tmp_path / "real") == "x"
    write_text(Path("/dev/null"), "x")


def test_a_name_that_is_no_unicode_keeps_its_bytes(tmp_path: Path) -> None:
    write_text(tmp_path / "t", b"For\xeat".decode("utf-8", "surrogateescape"))
    assert (tmp_path / "t").read_bytes() == b"For\xeat"
