"""No value of a row that belongs to its texts or its verdict is passed over in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from table_files import write_table

from prefopt.data.prepare import Prepared, prepare
from prefopt.data.rows.layouts.columns import BEFORE_PROMPT
from prefopt.data.rows.loss_needs import Needs
from prefopt.data.rows.source import Source
from prefopt.errors import DataError
from prefopt.types import Preference

PAIR = {"prompt": "what is a fox?", "chosen": " an animal", "rejected": " the car"}
ALPACA = {"instruction": "Double the number.", "chosen": " good", "rejected": " bad"}
USER = {"role": "user", "content": "what is a fox?"}
GOOD, BAD = ({"role": "assistant", "content": said} for said in ("an animal", "the car"))
SYSTEM = {"role": "system", "content": "Be brief."}
WHOLE = {"chosen": [USER, GOOD], "rejected": [USER, BAD]}


def made(rows: list[dict[str, Any]], tokenizer: Any, **settings: Any) -> Prepared:
    return prepare([Source("d.jsonl", rows=rows)], tokenizer, **settings)


def whys(got: Prepared) -> list[str]:
    return [row.describe() for row in got.report.bad]


TURNS_AND_INPUT = {"instruction": [USER], "input": "Below ten.", "chosen": [GOOD], "rejected": [BAD]}
CONTINUED = {"messages": [USER, GOOD], "rejected_response": "the car"}
ARENA = {"prompt": "q", "response_a": "x", "response_b": "y", "winner": "a"}


def scored(*completions: dict[str, Any]) -> dict[str, Any]:
    return {"instruction": "q", "completions": list(completions)}


REFUSED = {
    # a sound row, one that says something which was passed over, what is said of it
    "a number as input": (
        {**ALPACA, "input": "21"},
        {**ALPACA, "input": 21},
        "input: must be text, found int 21",
    ),
    "a list as input": (
        {**ALPACA, "input": ""},
        {**ALPACA, "input": ["21"]},
        "input: must be text, found list",
    ),
    "input beside turns": (
        {**TURNS_AND_INPUT, "input": ""},
        TURNS_AND_INPUT,
        "input: has a text, but 'instruction' has turns",
    ),
    "score and rank mixed": (
        scored({"response": "x", "score": 9}, {"response": "y", "score": 1}),
        scored({"response": "x", "rank": 1}, {"response": "y", "score": -5}),
        "completions.1: has no 'rank', by which 'completions.0' is scored, but 'score'",
    ),
    "score against rank": (
        scored({"response": "x", "score": 9, "rank": 1}, {"response": "y", "score": 1, "rank": 2}),
        scored({"response": "x", "score": 9, "rank": 2}, {"response": "y", "score": 1, "rank": 1}),
        "completions.0.rank: calls another answer the best than 'score'",
    ),
    "two texts of an answer": (
        scored({"response": "x", "score": 9}, {"response": "y", "score": 1}),
        scored({"response": "x", "score": 9}, {"response": "y", "text": "z", "score": 1}),
        "completions.1: holds 'response' and 'text', and either could be the answer",
    ),
    "winner against wins": (
        {**ARENA, "winner_model_a": 1, "winner_model_b": 0},
        {**ARENA, "winner_model_a": 0, "winner_model_b": 1},
        "winner_model_a: says otherwise than 'winner'",
    ),
    "prompt of a continued row": (
        CONTINUED,
        {**CONTINUED, "prompt": "Be brief."},
        "prompt: has a value, but 'messages'",
    ),
    "content beside value": (
        {"prompt": [{"from": "human", "value": "q"}], "chosen": "a", "rejected": "b"},
        {"prompt": [{"from": "human", "value": "q", "content": 5}], "chosen": "a", "rejected": "b"},
        "prompt.0.content: stands beside 'value'",
    ),
    "two names of a late column": (
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD], "system": "s", "system_prompt": "t"},
        "system_prompt: could be the system, but so could 'system'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_row_that_says_more_than_is_read_or_two_things_is_bad(case: str, chatml: Any) -> None:
    sound, odd, why = REFUSED[case]
    got = made([sound] * 64 + [odd], chatml)
    assert len(got.table) == 64
    (said,) = whys(got)
    assert said.startswith(f"d.jsonl:65: {why}")


LATE = {
    "an empty namesake": {"system": None, "system_prompt": "Be brief."},
    "a blank namesake": {"system": "", "system_prompt": "Be brief."},
}


@pytest.mark.parametrize("case", LATE)
def test_a_late_system_text_is_read_under_its_second_name(case: str, chatml: Any) -> None:
    sound = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD], "system": None, "system_prompt": None}
    got = made([sound] * 64 + [sound | LATE[case]], chatml)
    assert "Be brief." in chatml.decode(got.table[64].prompts[0])


def test_late_tools_of_openai_rows_are_read(chatml: Any) -> None:
    sound = {"input": {"messages": [USER]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]}
    tools = [{"type": "function", "function": {"name": "weather", "description": "asks"}}]
    got = made([sound] * 64 + [{**sound, "input": {"messages": [USER], "tools": tools}}], chatml)
    assert got.report.unprinted["tools"].origins == ["d.jsonl:65"]


def test_a_second_name_that_nothing_reads_is_named(chatml: Any) -> None:
    rows = [{"prompt": [USER], "chosen": [GOOD], "rejected": [BAD], "system": "s", "system_prompt": "t"}]
    assert made(rows, chatml).report.sources[0].unread == ["system_prompt"]


HH = {
    "prompt": "\n\nHuman: a dog?\n\nAssistant:",
    "chosen": "\n\nHuman: q\n\nAssistant: a",
    "rejected": "\n\nHuman: q\n\nAssistant: b",
}


def test_what_is_not_read_of_an_object_is_named(chatml: Any) -> None:
    inner = {"messages": [USER], "tools": [], "instructions": "Be brief."}
    row = {"input": inner, "preferred_output": [GOOD], "non_preferred_output": [BAD]}
    assert made([row], chatml).report.sources[0].unread == ["input.instructions"]
    assert "input.messages" in made([{**row, "prompt": "q"}], chatml).report.sources[0].unread


OTHER = {
    "a text with more in it": ({**WHOLE, "prompt": "Be brief. what is a fox?"}, None),
    "messages": ({**WHOLE, "prompt": [SYSTEM, USER]}, None),
    "an input": ({**WHOLE, "instruction": "what is a fox?", "input": "In one word."}, None),
    "a transcript": (HH, None),
    "a label": ({"prompt": "Be brief.", "messages": [USER, GOOD], "label": True}, Needs("labelled")),
}


@pytest.mark.parametrize("case", OTHER)
def test_a_prompt_that_says_more_than_its_conversations_is_counted(case: str, chatml: Any) -> None:
    row, needs = OTHER[case]
    got = made([row], chatml, **({} if needs is None else {"needs": needs}))
    assert got.report.other_prompt.origins == ["d.jsonl:1"] and len(got.table) == 1


def test_a_conversation_beside_a_labelled_answer_is_refused(chatml: Any) -> None:
    row = {"prompt": [USER], "completion": [GOOD], "label": True}
    got = made([row, {**row, "conversation": [USER, BAD]}], chatml, needs=Needs("labelled"))
    assert len(got.table) == 1 and whys(got)[0].startswith(
        "d.jsonl:2: conversation: has a value, but the row"
    )


SAME = {
    "text": {**WHOLE, "prompt": " what is a\nfox?"},
    "messages": {**WHOLE, "prompt": [USER]},
    "a transcript": {**HH, "prompt": "\n\nHuman: q\n\nAssistant:"},
}


@pytest.mark.parametrize("case", SAME)
def test_a_prompt_that_says_the_same_is_not_counted(case: str, chatml: Any) -> None:
    assert not made([SAME[case]], chatml).report.other_prompt.count


def test_a_turn_that_another_one_quotes_is_not_taken_for_printed(make_tokenizer: Any) -> None:
    """A template without system turns leaves out one whose words the user says too."""
    no_system = (
        "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    quoted = {"role": "user", "content": "Be brief. what is a fox?"}
    rows = [{"prompt": [SYSTEM, quoted], "chosen": [GOOD], "rejected": [BAD]}]
    rows += [{"prompt": [quoted], "chosen": [GOOD], "rejected": [BAD]}]
    assert made(rows, make_tokenizer(template=no_system)).report.left_out.origins == ["d.jsonl:1"]


def test_half_a_character_that_a_template_prints_makes_a_bad_row(make_tokenizer: Any) -> None:
    thinking = (
        "{% for m in messages %}<{{ m.role }}>{{ m.thinking or '' }}{{ m.content }}</>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    row = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}
    got = made(
        [row, {**row, "chosen": [{**GOOD, "thinking": "hm\ud800"}]}], make_tokenizer(template=thinking)
    )
    assert len(got.table) == 1 and "its text would hold half a character" in whys(got)[0]


def test_ranks_by_one_key_are_still_ranked(chatml: Any) -> None:
    row = scored({"response": "x", "rank": 2}, {"response": "y", "rank": 1, "overall_score": 3})
    assert made([row], chatml).table[0].preferences == (Preference(1, 0, 1.0, 1.0),)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_table_with_a_column_named_twice_is_refused(kind: str, tmp_path: Path, chatml: Any) -> None:
    import pyarrow as pa

    names = ["prompt", "chosen", "rejected", "chosen"]
    table = pa.table([pa.array([each]) for each in ("q", "a", "b", "c")], names=names)
    path = tmp_path / f"d.{kind}"
    write_table(path, table, kind)
    with pytest.raises(DataError, match=rf"{path}: column 'chosen' is named twice\. Give"):
        prepare([Source(str(path))], chatml)


def test_the_column_that_a_bad_row_names_does_not_hang_on_hashes(chatml: Any) -> None:
    names = list(BEFORE_PROMPT)
    rows = [{**PAIR, **dict.fromkeys(names[at:], "x")} for at in range(len(names))]
    assert [row.column for row in made([PAIR, *rows], chatml).report.bad] == names
