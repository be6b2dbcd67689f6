"""What the strict loader reads, what it refuses, and where it says the mistake is."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from prefopt.errors import RecipeError
from prefopt.recipe.strict_yaml import (
    MAX_BYTES,
    MAX_NODES,
    dump_yaml,
    parse_value,
    parse_yaml,
    read_yaml,
    resolve,
)

NUMBERS = {
    "5e-6": 5e-6,
    "1e-6": 1e-6,
    "5.0e-6": 5e-6,
    "1E+3": 1000.0,
    ".5": 0.5,
    "1.": 1.0,
    "-0.1": -0.1,
    "+12": 12,
    "-3": -3,
    "0": 0,
    "0.0": 0.0,
}


@pytest.mark.parametrize(("text", "value"), NUMBERS.items())
def test_numbers_follow_yaml_1_2(text: str, value: float) -> None:
    """YAML 1.1 reads 1e-6 as text, because it wants a dot and a sign; 1.2 reads a number."""
    read = parse_yaml(f"a: {text}", "r.yaml").value["a"]
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    "text", ["yes", "no", "on", "off", "y", "n", "2024-01-01", "1e", "e5", "1.2.3", "=", "a:b"]
)
def test_what_only_yaml_1_1_converts_is_text(text: str) -> None:
    assert parse_yaml(f"a: {text}", "r.yaml").value == {"a": text}


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False), ("TRUE", True)])
def test_only_true_and_false_are_booleans(text: str, value: bool) -> None:
    assert parse_yaml(f"a: {text}", "r.yaml").value["a"] is value


@pytest.mark.parametrize("text", ["", "~", "null", "Null", "NULL"])
def test_nothing_and_null_are_null(text: str) -> None:
    assert parse_yaml(f"a: {text}", "r.yaml").value == {"a": None}


@pytest.mark.parametrize("text", ["'5e-6'", '"true"', "'010'", "'~'", "'.nan'"])
def test_quoted_scalars_are_text(text: str) -> None:
    assert parse_yaml(f"a: {text}", "r.yaml").value == {"a": text[1:-1]}


REFUSED = {
    # what: (text, line:column, words that must be in the message)
    "duplicate key": ("a: 1\nb: 2\na: 3\n", "3:1", "'a' is given twice, first in line 1"),
    "duplicate key in a flow mapping": ("o: {lr: 1, lr: 2}", "1:12", "'lr' is given twice"),
    "duplicate key, once quoted": ("a: 1\n'a': 2", "2:1", "given twice"),
    "anchor": ("a: &x 1", "1:4", "the anchor &x"),
    "alias": ("a: *x", "1:4", "the alias *x"),
    "alias bomb": ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "1:4", "the anchor &a"),
    "merge key": ("a: 1\n<<: {b: 2}", "2:1", "merging with <<"),
    "tag": ("a: !!int 1", "1:4", "the tag"),
    "python tag": ("a: !!python/object/apply:os.system [ls]", "1:4", "the tag"),
    "local tag": ("a: !x 1", "1:4", "the tag !x"),
    "tag on a block": ("a: !!map {b: 1}", "1:4", "the tag"),
    "second document": ("a: 1\n---\nb: 2", "2:1", "a second document"),
    "directive": ("%YAML 1.1\n---\na: 1", "1:1", "a % directive"),
    "octal or decimal": ("a: 010", "1:4", "'010' means different things"),
    "hexadecimal": ("a: 0x1F", "1:4", "'0x1F' means different things"),
    "octal": ("a: 0o17", "1:4", "means different things"),
    "binary": ("a: 0b11", "1:4", "means different things"),
    "sexagesimal": ("a: 1:30", "1:4", "'1:30' means different things"),
    "underscores": ("a: 16_384", "1:4", "'16_384' means different things"),
    "infinity": ("a: .inf", "1:4", "not a finite number"),
    "negative infinity": ("a: -.Inf", "1:4", "not a finite number"),
    "not a number": ("a: .nan", "1:4", "not a finite number"),
    "overflow": ("a: 1e999", "1:4", "too large"),
    "huge integer": ("a: " + "9" * 5000, "1:4", "too large"),
    "integer beyond 64 bits": ("a: 9223372036854775808", "1:4", "too large"),
    "boolean key": ("true: 1", "1:1", "the key true is not text"),
    "number key": ("a:\n  1: 2", "2:3", "the key 1 is not text"),
    "null key": ("~: 1", "1:1", "the key null is not text"),
    "empty key": ("'': 1", "1:1", "is not text"),
    "list as key": ("? [a]\n: 1", "1:3", "a key must be a plain word"),
    "tab": ("a:\n\tb: 1", "2:1", "a tab"),
    "colon in a value": ("a: b: c", "1:5", "not valid YAML"),
    "open bracket": ("a: [1, 2", "1:9", "not valid YAML"),
    "open quote": ("a: 'x", "1:6", "not valid YAML"),
    "wrong indentation": ("a: 1\n  b: 2", "2:4", "not valid YAML"),
    "at sign": ("a: @x", "1:4", "not valid YAML"),
    "NUL": ("a: b\x00c", "1:5", "U+0000"),
    "escaped NUL": ('a: "b\\0c"', "1:4", "U+0000"),
    "escaped half of a surrogate pair": ('a: "\\ud800"', "1:4", "U+D800"),
    "bell": ("a: 1\nb: \x07", "2:4", "U+0007"),
    "unicode line break": ("a: b\u2028c: d", "1:5", "U+2028"),
    "lone carriage return": ("a: 1\rb: 2", "1:5", "U+000D"),
    "byte-order mark": ("\ufeffa: 1", "1:1", "byte-order mark"),
    "byte-order mark inside": ("a: 1\n\ufeffb: 2", "2:1", "U+FEFF"),
    "depth": ("[" * 25, "1:21", "more than 20 levels"),
    "depth in blocks": ("\n".join(" " * i + "a:" for i in range(25)), "21:21", "more than 20 levels"),
}


@pytest.mark.parametrize(("text", "place", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_ambiguous_or_hostile_is_refused_with_its_place(text: str, place: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_yaml(text, "r.yaml")
    message = str(caught.value)
    assert message.startswith(f"r.yaml:{place}: ") and words in message
    assert "\n" not in message and len(message) < 300


def test_every_key_and_entry_knows_its_place() -> None:
    document = parse_yaml("a: 1\nb:\n  - c: 2\n    d: {e: 3}\n", "r.yaml")
    assert document.places[("b",)] == "r.yaml:2:1"
    assert document.places[("b", 0)] == "r.yaml:3:5"
    assert document.places[("b", 0, "d", "e")] == "r.yaml:4:9"
    assert document.place(("b", 0, "nowhere", "at", "all")) == "r.yaml:3:5"
    assert document.place(("nowhere",)) == "r.yaml"


def test_files_are_bounded(tmp_path: Path) -> None:
    big = tmp_path / "big.yaml"
    big.write_bytes(b"a: " + b"x" * 10_000_000)
    with pytest.raises(RecipeError, match="larger than 1 MiB"):
        read_yaml(big)
    with pytest.raises(RecipeError, match="more than 10,000 values"):
        parse_yaml(f"a: [{'1,' * (MAX_NODES + 1)}]", "r.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "[" * MAX_BYTES,
        "{a: " * (MAX_BYTES // 4),
        "- " * (MAX_BYTES // 2),
        "a:\n" * (MAX_BYTES // 3),
        "!" * MAX_BYTES,
    ],
)
def test_bombs_of_the_largest_size_are_refused_quickly(text: str) -> None:
    start = time.process_time()
    with pytest.raises(RecipeError):
        parse_yaml(text, "r.yaml")
    assert time.process_time() - start < 5.0  # about 0.3 s here; a quadratic reader would take minutes


@pytest.mark.parametrize(
    "raw", [b"a: \xff", "a: 1".encode("utf-16"), b"\xef\xbb\xbfa: 1", b"a: 1\nb: \xc3\x28"]
)
def test_only_utf_8_without_mark_is_read(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(raw)
    with pytest.raises(RecipeError, match=r"r\.yaml:\d"):
        read_yaml(path)


def test_windows_line_ends_and_block_texts_are_read() -> None:
    assert parse_yaml("a: 1\r\nb: |\r\n  x\r\n  y\r\n", "r.yaml").value == {"a": 1, "b": "x\ny\n"}
    assert parse_yaml("", "r.yaml").value is None
    assert parse_yaml("# only a comment\n", "r.yaml").value is None


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        read_yaml(tmp_path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("[0.9, 0.95]", [0.9, 0.95]),
        ("{path: x}", {"path": "x"}),
        ("'a #b'", "a #b"),
        ("null", None),
    ],
)
def test_single_values_follow_the_same_rules(text: str, value: object) -> None:
    assert parse_value(text, "here") == value


@pytest.mark.parametrize("text", ["a #b", "a\nb", "--- a", "010", "*x", "[1", "a: b: c", "1\n...\n2"])
def test_a_value_that_would_lose_a_part_is_refused(text: str) -> None:
    """``a #b`` would be read as ``a``: the rest is a comment to YAML, but not to whoever typed it."""
    with pytest.raises(RecipeError, match=r"^here"):
        parse_value(text, "here")


@pytest.mark.parametrize(
    "value",
    [
        {"a": ["1e-6", 1e-6, "no", "010", "1:30", "~", "", " x ", "a: b", "#c", "é", "x\ny", "true", ".inf"]},
        {"deep": {"list": [{"a": None}, [], {}], "flag": False, "small": 5e-324, "many": 2**63 - 1}},
    ],
)
def test_what_is_written_reads_back_unchanged(value: object) -> None:
    assert parse_yaml(dump_yaml(value), "r.yaml").value == value


def test_shared_objects_are_written_out_and_not_as_aliases() -> None:
    shared = [1]
    text = dump_yaml({"a": shared, "b": shared})
    assert "*" not in text and parse_yaml(text, "r.yaml").value == {"a": [1], "b": [1]}


def test_resolve_never_returns_what_is_not_finite() -> None:
    with pytest.raises(ValueError, match="too large"):
        resolve("-1e400")
