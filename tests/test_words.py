"""The nearest name and the spelling of values, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from prefopt.words import cut, did_you_mean, nearest, spelled


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
