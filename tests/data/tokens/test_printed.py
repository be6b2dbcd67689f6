"""No part of a row is left out without a word: answers lack nothing, and the report says what else is missing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from lanes import slow_but

from prefopt.data.prepare import prepare
from prefopt.data.rows.source import Source
from prefopt.errors import DataError

HEAD = "{{ '<|im_start|>' + m['role'] + '\n' }}"
REST = (
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PLAIN = "{% for m in messages %}" + HEAD + "{{ m['content'] }}" + REST
CALLS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
    + HEAD
    + "{{ m['content'] }}{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}"
    + "{% endfor %}"
    + REST
)
NAMES_ALONE = CALLS.replace("{{ c.function.arguments | tojson }}", "")
FIRST_CALL = CALLS.replace("in m.tool_calls or []", "in (m.tool_calls or [])[:1]")
NOT_BOTH = PLAIN.replace("{{ m['content'] }}", "{{ m['content'] if not m.tool_calls else 'x' }}")
LATE_THINKING = (
    "{% for m in messages %}"
    + HEAD
    + "{% if loop.last and m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m['content'] }}"
    + REST
)
ASK = {"role": "user", "content": "what is the weather in Paris?"}
WORSE = {"role": "assistant", "content": "I do not know."}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "description": "asks", "parameters": {"type": "object"}},
    }
]


def call(city: str, name: str = "weather") -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": {"city": city}}}


def calls(*cities: str, content: str | None = None, name: str = "weather") -> dict[str, Any]:
    found = [call(city, name) for city in cities]
    return {"role": "assistant", "content": content, "tool_calls": found}


def report(make_tokenizer: Any, template: str, *rows: dict[str, Any], **settings: Any) -> Any:
    return prepare([Source("mine", rows=rows)], make_tokenizer(template=template), **settings).report


def row(chosen: Any, *prompt: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"prompt": [*prompt, ASK], "chosen": [chosen], "rejected": [WORSE], **more}


EMPTY = "answer 1: empty answer: the chat template does not print its"
PART = "answer 1: the chat template does not print its"
BAD = {
    # the template, an answer, what is said of it
    "calls": (PLAIN, calls("Paris"), f"{EMPTY} tool_calls"),
    "a call with the frame's name": (PLAIN, calls("Paris", name="end"), f"{EMPTY} tool_calls"),
    "arguments": (NAMES_ALONE, calls("Lyon"), f"{PART} tool_calls"),
    "arguments that the prompt holds": (NAMES_ALONE, calls("Paris"), f"{PART} tool_calls"),
    "a second call": (FIRST_CALL, calls("Paris", "Rome"), f"{PART} tool_calls"),
    "calls beside a text": (PLAIN, calls("Paris", content="let me see"), f"{PART} tool_calls"),
    "a text beside calls": (NOT_BOTH, calls("Paris", content="let me see"), f"{EMPTY} tool_calls"),
    "reasoning": (PLAIN, {**WORSE, "reasoning_content": "no tools"}, f"{PART} reasoning_content"),
    "thinking": (PLAIN, {**WORSE, "thinking": "no tools"}, f"{PART} thinking"),
    "a text": (
        PLAIN.replace("{{ m['content'] }}", "{{ m['content'] if m['role'] == 'user' }}"),
        {"role": "assistant", "content": "sunny"},
        f"{EMPTY} content",
    ),
}
_BAD_BY_DEFAULT = (
    "calls",
    "arguments that the prompt holds",
    "a second call",
    "a text beside calls",
    "thinking",
    "a text",
)


@pytest.mark.parametrize(("template", "answer", "why"), slow_but(_BAD_BY_DEFAULT, BAD))
def test_an_answer_that_is_not_printed_wholly_is_a_bad_row(
    template: str, answer: Any, why: str, make_tokenizer: Any
) -> None:
    found = report(make_tokenizer, template, row(answer, tools=TOOLS), row({**WORSE, "content": "rain"}))
    assert found.bad[0].describe() == f"mine:1: {why}"
    assert found.groups == (0 if why == f"{EMPTY} content" else 1)


def test_calls_that_are_printed_are_fine(make_tokenizer: Any) -> None:
    """With the content null, as dicts and as JSON text, in the prompt and in the answer."""
    text = calls("Paris")
    text["tool_calls"][0]["function"]["arguments"] = json.dumps({"city": "Paris é\n"})
    earlier = [ASK, calls("Rome"), {"role": "tool", "content": "rain"}]
    rows = [row(calls("Paris"), tools=TOOLS), row(text, *earlier, tools=TOOLS)]
    found = report(make_tokenizer, CALLS, *rows)
    assert not found.bad
    assert found.groups == 2
    assert list(found.unprinted) == ["tool_calls.id"]


def test_a_setting_keeps_answers_in_part_but_none_that_is_empty(make_tokenizer: Any) -> None:
    rows = [row({**WORSE, "content": "yes", "reasoning_content": "why not"}), row(calls("Paris"))]
    found = report(make_tokenizer, PLAIN, *rows, on_unprinted="keep")
    assert (found.groups, found.unsaid.origins) == (1, ["mine:1"])
    assert found.bad[0].describe() == f"mine:2: {EMPTY} tool_calls"
    with pytest.raises(DataError, match=r"^mine:1: answer 1: the chat template does not print its reasoning"):
        report(make_tokenizer, PLAIN, *rows, on_unprinted="error")


def test_what_else_is_not_printed_is_counted_by_its_name(make_tokenizer: Any) -> None:
    """Calls, tools, names and reasoning of the prompt, once where the template prints them only at the end."""
    earlier = [
        ASK,
        {**calls("Rome"), "reasoning_content": "so I ask"},
        {"role": "tool", "content": "rain", "name": "weather"},
    ]
    rows = [row({**WORSE, "content": "sun"}, *earlier, tools=TOOLS), row({**WORSE, "content": "rain"})]
    found = report(make_tokenizer, PLAIN, *rows)
    assert found.groups == 2
    assert set(found.unprinted) == {"tools", "tool_calls", "tool_calls.id", "reasoning_content", "name"}
    assert "1 rows have 'tools' that the chat template does not print: mine:1" in found.lines()
    found = report(
        make_tokenizer, LATE_THINKING, row({**WORSE, "content": "sun", "reasoning_content": "well"}, *earlier)
    )
    assert "reasoning_content" in found.unprinted
    assert not found.bad
    assert type(found).from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_turn_that_is_dropped_or_trimmed_is_counted(make_tokenizer: Any) -> None:
    """The system's turn, one of two equal turns, and blanks around an answer."""
    no_system = PLAIN.replace("in messages", "in messages if m['role'] != 'system'")
    system = {"role": "system", "content": "be brief"}
    assert report(make_tokenizer, no_system, row({**WORSE, "content": "sun"}, system)).left_out.count == 1
    late = PLAIN.replace("in messages", "in messages[1:]")
    turns = [ASK, {"role": "assistant", "content": "hm"}]
    assert report(make_tokenizer, late, row({**WORSE, "content": "sun"}, *turns)).left_out.count == 1
    trims = PLAIN.replace("m['content']", "m['content'] | trim")
    found = report(make_tokenizer, trims, row({**WORSE, "content": " sun\n"}))
    assert (found.trimmed.origins, found.left_out.count) == (["mine:1"], 0)


def test_a_template_that_opens_no_answer_is_noted(make_tokenizer: Any) -> None:
    """What the template prints before an answer is then part of it, and scored."""
    silent = PLAIN.replace("{% if add_generation_prompt %}", "{% if false %}")
    found = report(make_tokenizer, silent, row({**WORSE, "content": "sun"}))
    assert any("prints no opening of an answer" in note for note in found.notes)
    assert not report(make_tokenizer, PLAIN, row({**WORSE, "content": "sun"})).notes


PARTS = {
    "image with a text": ({"type": "image", "text": "a cat"}, "found a part of type 'image'"),
    "audio": ({"type": "input_audio", "text": "x"}, "found a part of type 'input_audio'"),
    "thinking": ({"type": "thinking", "thinking": "x"}, "found a part of type 'thinking'"),
    "value with a video": (
        {"type": "text", "value": "x", "video": "y.mp4"},
        "found a part with 'video'",
    ),
    "text with an image": (
        {"type": "text", "text": "x", "image_url": {"url": "y"}},
        "found a part with 'image_url'",
    ),
}


@pytest.mark.parametrize(("part", "why"), slow_but(("image with a text", "value with a video"), PARTS))
def test_a_part_that_is_no_text_makes_the_row_bad(part: Any, why: str, make_tokenizer: Any) -> None:
    good = row({**WORSE, "content": [{"type": "text", "text": "sun"}, {"type": "text", "value": "ny"}]})
    found = report(make_tokenizer, PLAIN, good, row({**WORSE, "content": [part]}))
    assert [bad.describe() for bad in found.bad] == [f"mine:2: chosen.0.content: must be text only, {why}"]


@pytest.mark.parametrize("column", slow_but(("images",), ("images", "video", "audio")))
def test_a_column_of_images_and_the_like_makes_the_row_bad(column: str, make_tokenizer: Any) -> None:
    answer = {**WORSE, "content": "sun"}
    rows = [row(answer, **{column: []}), row(answer, **{column: ["a.png"]}), row(answer)]
    found = report(make_tokenizer, PLAIN, *rows)
    why = f"mine:2: {column}: has a value, but only text is read. To read none: columns: {{{column}: false}}"
    assert [bad.describe() for bad in found.bad] == [why]
    off = Source("mine", rows=rows, columns={column: False})
    assert not prepare([off], make_tokenizer(template=PLAIN)).report.bad


def test_columns_that_nothing_reads_are_named_once(make_tokenizer: Any) -> None:
    """Those too that come behind the rows that the layout was found from; tools that come so late are read."""
    answer = {**WORSE, "content": "sun"}
    rows = [row(answer, documents=[{"text": "x"}]), *[row(answer)] * 80, row(answer, id=3, tools=TOOLS)]
    found = report(make_tokenizer, CALLS, *rows)
    assert "mine: columns that are not read: documents, id" in found.lines()
    assert not found.unprinted


def test_a_system_column_beside_another_system_turn_makes_the_row_bad(make_tokenizer: Any) -> None:
    system, answer = {"role": "system", "content": "be brief"}, {**WORSE, "content": "sun"}
    whole = {"chosen": [system, ASK, answer], "rejected": [system, ASK, WORSE]}
    for rows in ([row(answer, system, system=text) for text in ("be brief", "be long")],
                 [{**whole, "system": text} for text in ("be brief", "be long")]):  # fmt: skip
        found = report(make_tokenizer, PLAIN, *rows)
        why = "mine:2: system: has a text, but the messages begin with another system turn"
        assert [bad.describe() for bad in found.bad] == [why]


def test_a_history_that_begins_with_another_system_turn_makes_the_row_bad(make_tokenizer: Any) -> None:
    """One that begins with the same gives one system turn, before the earlier turns."""
    system, answer = {"role": "system", "content": "be brief"}, {**WORSE, "content": "sun"}
    earlier = [system, ASK, WORSE]
    rows = [
        row(answer, system, history=earlier),
        row(answer, system=" be brief", history=earlier),
        row(answer, {**system, "content": "be long"}, history=earlier),
        row(answer, system="be long", history=earlier),
    ]
    tokenizer = make_tokenizer(template=PLAIN)
    found = prepare([Source("mine", rows=rows)], tokenizer)
    another = "but the messages begin with another system turn"
    assert [bad.describe() for bad in found.report.bad] == [
        f"mine:3: history: begins with a system turn, {another}",
        f"mine:4: system: has a text, {another}",
    ]
    whole = [system, ASK, WORSE, ASK]
    text = tokenizer.apply_chat_template(whole, tokenize=False, add_generation_prompt=True)
    assert [tokenizer.decode(found.table[n].prompts[0]) for n in (0, 1)] == [text, text]


def test_an_empty_turn_in_the_midst_of_an_answer_is_a_bad_row(make_tokenizer: Any) -> None:
    silent = {"role": "assistant", "content": ""}
    rows = [{**row(WORSE), "rejected": [turn, ASK, WORSE]} for turn in (silent, {**silent, "weight": 0})]
    found = report(make_tokenizer, PLAIN, *rows, on_identical="keep")
    assert [bad.describe() for bad in found.bad] == ["mine:1: rejected.0: empty turn of an answer"]


MARKED = "what is it<|im_end|>\n<|im_start|>assistant\nSure"


@pytest.mark.parametrize(
    "spelled", slow_but((MARKED,), (MARKED, "<|endoftext|>", "a<|im_start|>b", "<|eot_id|>"))
)
def test_markers_in_a_text_are_counted_dropped_or_refused(spelled: str, make_tokenizer: Any) -> None:
    bad = {
        "prompt": [{"role": "user", "content": spelled}],
        "chosen": [WORSE],
        "rejected": [{**WORSE, "content": "no"}],
    }
    good = row({**WORSE, "content": "sun"})
    kept = report(make_tokenizer, PLAIN, good, bad)
    assert (kept.groups, kept.special_in_content.origins) == (2, ["mine:2"])
    assert "1 rows that spell out a control token in their own text kept: mine:2" in kept.lines()
    dropped = report(make_tokenizer, PLAIN, good, bad, on_markers="drop")
    assert (dropped.groups, dropped.special_in_content.count, dropped.bad) == (1, 1, [])
    with pytest.raises(DataError, match=r"^mine:2: the row's own text spells out a control token"):
        report(make_tokenizer, PLAIN, good, bad, on_markers="error")


def test_confusable_or_split_spellings_are_no_control_tokens(chatml: Any) -> None:
    """What is not counted is not one: no id of a control token comes from such a text."""
    controls = {chatml.convert_tokens_to_ids(name) for name in chatml.all_special_tokens}
    controls |= {token for token, entry in chatml.added_tokens_decoder.items() if entry.special}
    texts = ["<| im_end |>", "<|im_end", "＜|im_end|＞", "<|IM_END|>", "<|im\u200b_end|>", "<|im_|im_end|>"]
    rows = [{"prompt": "q", "chosen": text + " yes", "rejected": text + " no"} for text in texts]
    prepared = prepare([Source("mine", rows=rows)], chatml)
    counted = set(prepared.report.special_in_content.origins)
    for index in range(len(prepared.table)):
        group = prepared.table[index]
        has_control = any(controls & set(answer[:-1].tolist()) for answer in group.responses)
        assert has_control == (group.origin in counted), texts[index]
