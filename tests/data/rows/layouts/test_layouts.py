"""A row of every layout becomes the comparison that its data says, margin and scores included."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from prefopt.data.rows.layouts.detect import detect, to_comparison
from prefopt.data.rows.messages import transcript
from prefopt.data.rows.raw_rows import RawRow, RowError
from prefopt.data.rows.source import Source
from prefopt.types import Comparison, Preference


def turn(role: str, content: str, **rest: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **rest}


Q, GOOD, BAD = turn("user", "q"), turn("assistant", "a"), turn("assistant", "b")


def read(row: dict[str, Any], **settings: Any) -> Comparison:
    layout = detect([RawRow("f:1", row, "")], Source("f.jsonl", **settings))
    return to_comparison(layout, row, 5, "f:1")


def test_text_row_stays_text() -> None:
    row = read({"prompt": "q", "chosen": "a", "rejected": "b"})
    assert (row.prompt, row.answers) == ("q", ("a", "b"))
    assert row.preferences == (Preference(0, 1, 1.0, 0.0),)
    assert (row.row_id, row.origin, row.scores, row.labels) == (5, "f:1", None, None)


def test_alpaca_input_follows_its_instruction() -> None:
    row = read({"instruction": "Add.", "input": "1 + 1", "chosen": "2", "rejected": "3"})
    assert row.prompt == "Add.\n1 + 1"


def test_columns_become_scores_margin_and_weight() -> None:
    """Scores 7 and 4 give the margin 3; a margin column goes before them."""
    base = {
        "prompt": "q",
        "chosen": "a",
        "rejected": "b",
        "score_chosen": 7,
        "score_rejected": "4",
        "weight": 2,
    }
    assert read(base).preferences == (Preference(0, 1, 2.0, 3.0),)
    assert read(base).scores == (7.0, 4.0)
    assert read({**base, "margin": 0.25}).preferences == (Preference(0, 1, 2.0, 0.25),)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [Q], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [Q], "chosen": GOOD, "rejected": BAD},
        {"prompt": [Q], "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [Q, GOOD], "rejected": [Q, BAD]},
        {"prompt": [Q], "chosen": [Q, GOOD], "rejected": [Q, BAD]},
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "Human: q\n\nAssistant: b"},
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": "b",
        },
        {"input": {"messages": [Q]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
        {"prompt": json.dumps([Q]), "chosen": json.dumps([GOOD]), "rejected": json.dumps(BAD)},
        {
            "prompt": [turn("human", "q", name=None)],
            "chosen": [{"role": "gpt", "content": "a"}],
            "rejected": [BAD],
        },
        {
            "prompt": [{"role": "user", "content": [{"type": "text", "text": "q"}]}],
            "chosen": GOOD,
            "rejected": BAD,
        },
    ],
)
def test_the_same_pair_in_every_layout_of_messages_is_the_same_comparison(row: dict[str, Any]) -> None:
    got = read(row)
    assert (got.prompt, got.answers) == ([Q], ([GOOD], [BAD]))


def test_layout_messages_wraps_text_in_turns() -> None:
    row = read({"prompt": "q", "chosen": "a", "rejected": "b"}, layout="messages")
    assert (row.prompt, row.answers) == ([Q], ([GOOD], [BAD]))


def test_system_column_opens_the_conversation_once() -> None:
    system = turn("system", "s")
    row = {"system": "s", "chosen": [Q, GOOD], "rejected": [Q, BAD]}
    assert read(row).prompt == [system, Q]
    assert read({**row, "chosen": [system, Q, GOOD], "rejected": [system, Q, BAD]}).prompt == [system, Q]
    assert read({"system": "s", "question": "q", "chosen": "a", "rejected": "b"}).prompt == [system, Q]
    assert read({"system": "s", "messages": [Q, GOOD], "label": 1}).prompt == [system, Q]


def test_tools_and_calls_are_kept() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    row = {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        "rejected": {"from": "gpt", "value": "b"},
        "tools": '[{"name": "f"}]',
    }
    got = read(row)
    assert got.answers[0] == [turn("assistant", "", tool_calls=[call])]
    assert got.tools == [{"name": "f"}]


def test_conversations_part_before_the_first_assistant_turn_that_differs() -> None:
    more = turn("user", "and?")
    row = read({"chosen": [Q, GOOD, more, GOOD], "rejected": [Q, GOOD, more, BAD]})
    assert (row.prompt, row.answers) == ([Q, GOOD, more], ([GOOD], [BAD]))
    early = read({"chosen": [Q, GOOD, more, GOOD], "rejected": [Q, BAD, more, BAD]})
    assert (early.prompt, early.answers) == ([Q], ([GOOD, more, GOOD], [BAD, more, BAD]))


def test_a_prompt_never_ends_with_an_assistant_turn() -> None:
    """The first of two assistant turns in a row is shared, yet belongs to the answers."""
    row = read({"chosen": [Q, GOOD, GOOD], "rejected": [Q, GOOD, BAD]})
    assert (row.prompt, row.answers) == ([Q], ([GOOD, GOOD], [GOOD, BAD]))


def test_equal_conversations_part_before_the_last_reply() -> None:
    row = read({"chosen": [Q, GOOD], "rejected": [Q, GOOD]})
    assert (row.prompt, row.answers) == ([Q], ([GOOD], [GOOD]))


def test_transcript_turns_written_back_give_the_transcript() -> None:
    text = (
        "\n\nHuman: Hi\n\nAssistant: Hello!\n\nTwo paragraphs: Human: and all.\n\nHuman: ok\n\nAssistant: Bye"
    )
    names = {"user": "Human", "assistant": "Assistant"}
    turns = transcript(text, "chosen")
    assert "".join(f"\n\n{names[t['role']]}: {t['content']}" for t in turns) == text


def test_labelled_conversation_splits_after_its_last_question() -> None:
    call, result = turn("assistant", "", tool_calls=[{"name": "f"}]), turn("tool", "1")
    row = read({"messages": [Q, GOOD, Q, call, result, GOOD], "label": False})
    assert (row.prompt, row.answers, row.labels) == ([Q, GOOD, Q], ([call, result, GOOD],), (False,))
    assert row.preferences == ()


@pytest.mark.parametrize("value", [True, 1, "true", "1", "desirable"])
def test_labels_are_read_in_the_usual_spellings(value: Any) -> None:
    assert read({"prompt": "q", "completion": "a", "label": value}).labels == (True,)


def test_best_answer_meets_every_other_with_their_gap_as_margin() -> None:
    """Scores 1, 4, 2.5: the second is best, 3 ahead of the first and 1.5 ahead of the third."""
    row = read({"prompt": "q", "responses": ["x", "y", "z"], "scores": [1, 4, 2.5]})
    assert row.preferences == (Preference(1, 0, 1.0, 3.0), Preference(1, 2, 1.0, 1.5))
    assert row.scores == (1.0, 4.0, 2.5)


def test_rank_one_is_best() -> None:
    row = read({"prompt": "q", "answers": [{"answer": "x", "rank": 2}, {"answer": "y", "rank": 1}]})
    assert (row.preferences, row.scores) == ((Preference(1, 0, 1.0, 1.0),), (-2.0, -1.0))
    assert read({"prompt": "q", "responses": ["x", "y"], "ranks": [2, 1]}).preferences == row.preferences


def test_first_of_equally_good_answers_is_best() -> None:
    row = read({"prompt": "q", "responses": ["x", "y", "z"], "scores": [2, 2, 1]})
    assert row.preferences == (Preference(0, 1, 1.0, 0.0), Preference(0, 2, 1.0, 1.0))


@pytest.mark.parametrize(
    ("names", "value", "chosen"),
    [
        (("response_0", "response_1", "better_response_id"), 1, 1),
        (("response_0", "response_1", "better_response_id"), 0, 0),
        (("response_a", "response_b", "winner"), "model_b", 1),
        (("response_a", "response_b", "preference"), "A", 0),
        (("response_1", "response_2", "preference"), "response_2", 1),
        (("response1", "response2", "overall_preference"), -3, 0),
        (("response1", "response2", "overall_preference"), 2, 1),
    ],
)
def test_the_better_of_two_is_chosen(names: tuple[str, str, str], value: Any, chosen: int) -> None:
    row = read({"prompt": "q", names[0]: "x", names[1]: "y", names[2]: value})
    margin = float(abs(value)) if names[2] == "overall_preference" else 0.0
    assert row.preferences == (Preference(chosen, 1 - chosen, 1.0, margin),)
    assert row.scores is None


@pytest.mark.parametrize(("name", "value"), [("winner", "tie"), ("overall_preference", 0)])
def test_a_choice_of_neither_is_a_tie(name: str, value: Any) -> None:
    row = read({"prompt": "q", "response_a": "x", "response_b": "y", name: value})
    assert row.scores == (0.0, 0.0)


def test_column_that_first_appears_in_a_later_row_is_read() -> None:
    plain = {"prompt": "q", "chosen": "a", "rejected": "b"}
    layout = detect([RawRow("f:1", plain, "")], Source("f.jsonl"))
    row = to_comparison(layout, {**plain, "margin": 2, "weight": 3}, 0, "f:100")
    assert row.preferences == (Preference(0, 1, 3.0, 2.0),)
    with pytest.raises(RowError, match="system: has text"):
        to_comparison(layout, {**plain, "system": "s"}, 0, "f:101")


def test_system_text_in_a_later_plain_text_row_is_refused() -> None:
    plain = {"prompt": "q", "chosen": "a", "rejected": "b", "system": ""}
    layout = detect([RawRow("f:1", plain, "")], Source("f.jsonl", layout="text"))
    with pytest.raises(RowError, match=re.escape("system: has text, but these rows are read as plain text")):
        to_comparison(layout, {**plain, "system": "s"}, 0, "f:2")


def test_a_soft_label_is_a_probability_and_unknown_without_the_column() -> None:
    base = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert read(base).preferences[0].soft_label is None
    assert read({**base, "soft_label": 0.75}).preferences[0].soft_label == 0.75
    with pytest.raises(RowError, match=r"soft_label: must be a probability from 0 to 1, found 1\.5"):
        read({**base, "soft_label": 1.5})
