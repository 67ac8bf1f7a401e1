"""A file that is not plain UTF-8 is named with path and line, with what it probably is, and with the remedy."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from querylift.plugin.errors import DataError, SettingsError
from querylift.plugin.text_files import parse_json_object, read_lines

LINES = b"".join(b"q%d\ttext %d\n" % (number, number * number) for number in range(9999))


def _read_file(tmp_path: Path, content: bytes, name: str = "log.tsv") -> list[tuple[int, str]]:
    (tmp_path / name).write_bytes(content)
    return list(read_lines(tmp_path / name))


@pytest.mark.parametrize("name", ["log.tsv", "log.tsv.gz"])
def test_gzip_is_known_by_its_first_bytes_whatever_the_name(tmp_path: Path, name: str) -> None:
    assert _read_file(tmp_path, gzip.compress("\ufeffcafé\n\nthé\r\n".encode()), name) == [(1, "café"), (3, "thé")]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(gzip.compress(LINES)[:-100], id="cut off"),
        pytest.param(gzip.compress(LINES)[:400] + b"\xff" * 40 + gzip.compress(LINES)[440:], id="bytes overwritten"),
        pytest.param(gzip.compress(LINES)[:-8] + b"\0" * 8, id="wrong checksum"),
        pytest.param(gzip.compress(LINES) + b"more", id="more after the end"),
        pytest.param(b"\x1f\x8bno gzip at all", id="only the first two bytes"),
        pytest.param(b"q1\tone\n", id="plain text"),
    ],
)
def test_a_damaged_gzip_file_is_named(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"log\.gz:[0-9]+: the gzip file is broken \(.*\); copy or compress it again"):
        _read_file(tmp_path, content, "log.gz")


@pytest.mark.parametrize(
    ("content", "line", "sentence"),
    [
        ("fine\nnaïve\n".encode("latin1"), 2, "it looks like latin1; convert it: iconv -f latin1 -t utf-8 "),
        ("“naïve Bayes”\n".encode("windows-1252"), 1, "it looks like windows-1252; convert it: iconv -f windows-1252 "),
        ("内科医生\n".encode("gb18030"), 1, "find out its encoding; convert it: iconv -f ENCODING -t utf-8 "),
        ("naïve\n".encode() + "naïve\n".encode("latin1"), 2, "lines before it are UTF-8, so correct this line alone"),
        ("naïve\n".encode("utf-16"), 1, "the file is UTF-16; convert it: iconv -f utf-16 -t utf-8 "),
        ("naïve\n".encode("utf-16le"), 1, "the file is UTF-16LE; convert it: iconv -f utf-16le -t utf-8 "),
        ("naïve\n".encode("utf-16be"), 1, "the file is UTF-16BE; convert it: iconv -f utf-16be -t utf-8 "),
        ("naïve\n".encode("utf-32"), 1, "the file is UTF-32; convert it: "),
        (b"PK\x03\x04\x14\0", 1, "the file is a ZIP archive or a spreadsheet, not text; unpack or export it"),
        (b"PAR1\x15\x04", 1, "the file is a Parquet file, not text"),
    ],
)
def test_another_encoding_or_format_is_named_with_the_command_that_converts_it(
    tmp_path: Path, content: bytes, line: int, sentence: str
) -> None:
    with pytest.raises(DataError) as caught:
        _read_file(tmp_path, content, "my log.tsv")
    assert caught.value.line == line
    assert sentence in str(caught.value)


def test_a_gzip_file_of_another_encoding_is_converted_through_zcat(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"convert it: zcat '.*/my log\.gz' \| iconv -f latin1 -t utf-8 > NEW_FILE$"):
        _read_file(tmp_path, gzip.compress("naïve\n".encode("latin1")), "my log.gz")


def test_a_nul_character_among_others_is_part_of_a_line(tmp_path: Path) -> None:
    assert _read_file(tmp_path, b"axon\0 terminal\n") == [(1, "axon\0 terminal")]


@pytest.mark.parametrize("name", ["missing.tsv", "missing.tsv.gz", "."])
def test_a_file_that_cannot_be_opened_is_a_settings_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match=r"cannot be read: .*; name another file"):
        list(read_lines(tmp_path / name))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"query": "axon"', r"log:7: this line is not JSON \(Expecting .*\); write one JSON object on each line"),
        ("[" * 100_000, "log:7: Python cannot hold this JSON: "),
        ('{"count": 1' + "0" * 5000 + "}", "log:7: Python cannot hold this JSON: .*; write a smaller value"),
        ("[1]", r"log:7: this line is a JSON list; write an object, {...}"),
    ],
)
def test_a_line_that_is_no_json_object_is_named(line: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        parse_json_object(line, "log", 7)
