"""The nearest name and the spelling of values, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from prefopt.words import cut, did_you_mean, nearest, shown, spelled


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("beta_dyn", "beta_dynamic"),
        ("LD-DPO", "ld_dpo"),
        ("simp", "simpo"),
        ("ld_pdo", "ld_dpo"),
        ("zzzzzz", None),
        ("", None),
    ],
)
def test_the_nearest_name_is_found_whatever_its_capitals_and_dashes(word: str, meant: str | None) -> None:
    assert nearest(word, ["simpo", "ld_dpo", "beta_dynamic"]) == meant


def test_nothing_is_suggested_where_there_is_nothing() -> None:
    assert nearest("x", []) is None
    assert did_you_mean("x", []) == ""
    assert did_you_mean("simp", ["simpo"]) == " Did you mean 'simpo'?"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (5e-6, "5e-06"),
        ("dpo", "'dpo'"),
        ({"name": "dpo", "with": [None, 2]}, "{name: 'dpo', with: [null, 2]}"),
    ],
)
def test_values_are_spelled_as_a_recipe_writes_them(value: Any, text: str) -> None:
    assert spelled(value) == text


def test_values_are_shown_on_one_line_and_not_to_the_bottom() -> None:
    """A row of a file may hold lists a thousand deep; nine brackets are enough to see what it is."""
    deep: list[Any] = []
    for _ in range(2000):
        deep = [deep]
    assert spelled(deep) == "[" * 8 + "…" + "]" * 8
    assert "\n" not in spelled({"a\nb": "c\nd"})


def test_long_values_are_cut_with_an_ellipsis() -> None:
    """Ten characters of which the last is the ellipsis."""
    assert spelled("abcdefghijkl", 10) == "'abcdefgh…"
    assert cut("abcdefghij", 10) == "abcdefghij"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("\x1b]0;pwn\x07", r"\x1b]0;pwn\x07"),  # sets the title
        ("\x1b[2J\x1b[H", r"\x1b[2J\x1b[H"),  # clears the screen
        ("\x9b31m", r"\x9b31m"),  # the same in one byte of C1
        ("\x9d0;pwn\x9c", r"\x9d0;pwn\x9c"),
        ("good\rbad", r"good\rbad"),  # writes over the line
        ("a\x08b\x7f", r"a\x08b\x7f"),
        ("\x00\x0e\x0b\x0c", r"\x00\x0e\x0b\x0c"),
        ("a\u202eb\u2066c", r"a\u202eb\u2066c"),  # turns the direction
        ("a\x85b\u2028c", r"a\x85b\u2028c"),  # lines for some, none for others
        ("\ud800", r"\ud800"),  # no terminal can encode it
        ("two\nlines\tand 你好 é e\u0301 🙂 👨\u200d👩\u200d👧 שלום العربية", None),
    ],
)
def test_control_characters_are_spelled_out_and_all_other_text_stays(text: str, plain: str | None) -> None:
    assert shown(text) == (text if plain is None else plain)
    assert shown(shown(text)) == shown(text)
