"""The layout of a source is found from its first rows, or refused in one line that says what was found."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from prefopt.data.rows.layouts.columns import SHARED
from prefopt.data.rows.layouts.detect import detect
from prefopt.data.rows.layouts.layout import Layout, RowLayout
from prefopt.data.rows.layouts.table import ALIASES, LAYOUTS, ROW_LAYOUTS
from prefopt.data.rows.raw_rows import RawRow, RowError
from prefopt.data.rows.source import Source
from prefopt.errors import DataError

USER, GOOD, BAD = (
    {"role": r, "content": c} for r, c in (("user", "q"), ("assistant", "a"), ("assistant", "b"))
)
HH = "\n\nHuman: q\n\nAssistant: a"


def found(*values: dict[str, Any], **settings: Any) -> RowLayout:
    """Detect the layout of rows that come from ``data.jsonl``."""
    rows = [RawRow(f"data.jsonl:{n}", value, "") for n, value in enumerate(values, start=1)]
    return detect(rows, Source("data.jsonl", **settings))


CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    # row, layout, where the prompt comes from
    "text": ({"prompt": "q", "chosen": "a", "rejected": "b"}, "text", "prompt"),
    "question": ({"question": "q", "chosen": "a", "rejected": "b"}, "text", "question"),
    "alpaca": ({"instruction": "q", "input": "x", "chosen": "a", "rejected": "b"}, "text", "instruction"),
    "input": ({"input": "q", "chosen": "a", "rejected": "b"}, "text", "input"),
    "responses": ({"prompt": "q", "chosen_response": "a", "rejected_response": "b"}, "text", "prompt"),
    "system": ({"system": "s", "question": "q", "chosen": "a", "rejected": "b"}, "messages", "question"),
    "messages": ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, "messages", "prompt"),
    "dict answers": ({"prompt": [USER], "chosen": GOOD, "rejected": BAD}, "messages", "prompt"),
    "text answers": ({"prompt": [USER], "chosen": "a", "rejected": "b"}, "messages", "prompt"),
    "implicit": ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, "messages", ""),
    "implicit beside prompt": (
        {"prompt": "q", "messages": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        "messages",
        "prompt",
    ),
    "transcript": ({"chosen": HH, "rejected": HH}, "transcript", ""),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "q"}], "chosen": "a", "rejected": "b"},
        "sharegpt",
        "conversations",
    ),
    "openai": (
        {"input": {"messages": [USER]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
        "messages",
        "input.messages",
    ),
    "kto messages": ({"messages": [USER, GOOD], "label": True}, "labelled (messages)", ""),
    "kto text": ({"prompt": "q", "completion": "a", "label": False}, "labelled (text)", "prompt"),
    "kto sharegpt": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "kto_tag": True},
        "labelled (sharegpt)",
        "",
    ),
    "scores": ({"prompt": "q", "responses": ["a", "b"], "scores": [1, 2]}, "ranked (text)", "prompt"),
    "ranks": ({"prompt": [USER], "completions": ["a", "b"], "ranks": [1, 2]}, "ranked (messages)", "prompt"),
    "scored inside": (
        {"instruction": "q", "completions": [{"response": "a", "overall_score": 5}, {"response": "b"}]},
        "ranked (text)",
        "instruction",
    ),
    "two and a choice": (
        {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 0},
        "ranked (text)",
        "prompt",
    ),
    "helpsteer": (
        {"context": [USER], "response1": "a", "response2": "b", "overall_preference": -2},
        "ranked (messages)",
        "context",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_layout_is_found_from_the_columns(name: str) -> None:
    row, layout, prompt = CASES[name]
    got = found(row)
    assert got.name == layout
    if prompt:
        assert got.columns["prompt"] == prompt


def test_every_named_layout_has_a_row_that_is_found_as_it() -> None:
    names = {layout.split()[0] for _, layout, _ in CASES.values()}
    assert names == set(LAYOUTS), f"CASES has no row of {sorted(set(LAYOUTS) - names)}"


def test_layout_messages_takes_text_as_turns() -> None:
    row = CASES["text"][0]
    assert found(row, layout="messages").is_chat and not found(row).is_chat


def test_bad_rows_at_the_top_do_not_decide() -> None:
    broken = RawRow("data.jsonl:1", None, "x", RowError("", "not valid JSON"))
    odd = RawRow("data.jsonl:2", {"note": 1}, "")
    good = RawRow("data.jsonl:3", CASES["text"][0], "")
    assert detect([broken, odd, good], Source("data.jsonl")).name == "text"


def test_optional_columns_are_found_in_any_of_the_first_rows() -> None:
    row = CASES["text"][0]
    assert found(row, {**row, "margin": 0.5, "score_chosen": 3}).columns["margin"] == "margin"
    assert found(row, {**row, "score_chosen": 3}).columns["chosen_score"] == "score_chosen"


def test_columns_map_names_and_dotted_paths() -> None:
    row = {"q": "why", "answers": [{"text": "a"}, {"text": "b"}]}
    columns = {"prompt": "q", "chosen": "answers.0.text", "rejected": "answers.1.text"}
    got = found(row, columns=columns)
    assert got.name == "text" and got.columns == columns


ERRORS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "nothing fits": (
        {"a": 1, "b": 2},
        {},
        r"no layout fits the columns found \(a, b\)\. Map them with columns",
    ),
    "no scores": (
        {"prompt": "q", "completions": ["a", "b"]},
        {},
        r"\(prompt, completions\)\. 'completions' is there, but no number for each answer\. Add a column scores, ",
    ),
    "no label": (
        {"prompt": "q", "answer": "a", "good": True},
        {},
        r"'answer' is there, but no true or false .*\. Add a column label, or map one with columns: \{label: …\}\.$",
    ),
    "no prompt": ({"chosen": "a", "rejected": "b"}, {}, "but no prompt that goes with them"),
    "two prompts": (
        {"question": "q", "instruction": "i", "chosen": "a", "rejected": "b"},
        {},
        r"'question' and 'instruction' could each be the prompt\. Name one: columns: \{prompt: question\}",
    ),
    "two layouts": (
        {"prompt": "q", "chosen": "a", "rejected": "b", "completion": "a", "label": True},
        {},
        r"fit more than one layout, 'text' \(chosen, rejected, prompt\) and 'labelled \(text\)' .*data\.layout",
    ),
    "wrong layout": (
        CASES["messages"][0],
        {"layout": "transcript"},
        "layout 'transcript' does not fit the columns",
    ),
    "no such layout": (
        CASES["text"][0],
        {"layout": "mesages"},
        r"no layout 'mesages'\. Did you mean 'messages'\?",
    ),
    "no such name": (
        CASES["text"][0],
        {"columns": {"promt": "prompt"}},
        r"columns\.promt is no column that a layout reads\. Did you mean 'prompt'\?",
    ),
    "no such column": (
        {"question": "q", "chosen": "a", "rejected": "b"},
        {"columns": {"prompt": "qestion"}},
        r"columns\.prompt: no column 'qestion' in the first 1 rows\. Did you mean 'question'\?",
    ),
    "no use": (
        {**CASES["kto text"][0], "margin": 1},
        {"columns": {"margin": "margin"}},
        r"columns\.margin has no use in layout 'labelled \(text\)'",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_layout_that_cannot_be_decided_is_one_line(name: str) -> None:
    row, settings, message = ERRORS[name]
    with pytest.raises(DataError, match=message) as caught:
        found(row, **settings)
    assert str(caught.value).startswith("data.jsonl: ") and "\n" not in str(caught.value)


def test_naming_the_layout_settles_an_ambiguity() -> None:
    row = ERRORS["two layouts"][0]
    assert found(row, layout="labelled").name == "labelled (text)"


def test_text_that_looks_like_json_stays_text() -> None:
    row = {"prompt": '["a", "b"]', "chosen": '{"x": 1}', "rejected": "[]"}
    assert found(row).name == "text"


def test_every_layout_says_all_of_its_columns() -> None:
    """A column nobody names is never found, and one that two layouts name would go by the last one's names."""
    for layout in ROW_LAYOUTS:
        read = {*layout.required, *layout.optional}
        assert read <= ALIASES.keys(), f"layout '{layout.name}': no aliases for {read - ALIASES.keys()}"
        assert layout.aliases.keys() <= read, f"layout '{layout.name}' names columns that it does not read"
        assert set(layout.lists) <= read
        assert layout.half is None or {layout.half.there, layout.half.lacking} <= ALIASES.keys()
    names = [name for columns in (SHARED, *(layout.aliases for layout in ROW_LAYOUTS)) for name in columns]
    assert len(names) == len(ALIASES), "a column that two layouts read belongs into columns.SHARED"


def test_a_layout_cannot_forget_a_part() -> None:
    parts = {field.name: getattr(ROW_LAYOUTS[0], field.name) for field in fields(Layout)}
    for name in parts:
        with pytest.raises(TypeError, match=f"missing 1 required keyword-only argument: '{name}'"):
            Layout(**{key: value for key, value in parts.items() if key != name})
