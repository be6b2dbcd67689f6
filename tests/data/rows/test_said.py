"""What of the rows is not read, read otherwise than it stands, or contradicts itself is counted and said."""

from __future__ import annotations

import json
from typing import Any

import pytest

from prefopt.data.prepare import Prepared, prepare
from prefopt.data.rows.loss_needs import Needs
from prefopt.data.rows.source import Source
from prefopt.errors import DataError
from prefopt.types import Preference

PAIR = {"prompt": "what is a fox?", "chosen": " an animal", "rejected": " the car"}
SCORED = Needs(inputs=("chosen_score", "rejected_score"))
USER = {"role": "user", "content": "what is a fox?"}
REPLY = {"role": "assistant", "content": "an animal"}
OPEN = "\n\nHuman: what is a fox?\n\nAssistant:"


def made(rows: list[dict[str, Any]], tokenizer: Any, **settings: Any) -> Prepared:
    source = {name: settings.pop(name) for name in ("columns", "layout", "better_is") if name in settings}
    return prepare([Source("d.jsonl", rows=rows, **source)], tokenizer, **settings)


def first_text(got: Prepared, tokenizer: Any) -> str:
    return str(tokenizer.decode(got.table[0].prompts[0]))


# columns that are not read


def test_columns_that_nothing_reads_are_named_once_for_their_source(chatml: Any) -> None:
    rows = [
        {**PAIR, "id": 1},
        {**PAIR, "id": 2, "context": "foxes"},
        *[PAIR] * 70,
        {**PAIR, "late": 1, "id": 3},
    ]
    report = made(rows, chatml).report
    assert report.sources[0].unread == ["id", "context", "late"]
    assert (
        "d.jsonl: columns that are not read: id, context, late; context may belong to the prompt"
        in report.lines()
    )


def test_columns_that_are_read_or_left_out_on_purpose_are_not_named(chatml: Any) -> None:
    rows = [
        {"instruction": "add", "input": "1 + 1", "a": {"text": " 2"}, "rejected": " 3", "id": 1, "tools": []}
    ]
    columns = {"chosen": "a.text", "id": False}
    assert made(rows, chatml, columns=columns).report.sources[0].unread == []


def test_columns_of_which_one_loss_alone_reads_are_named_for_the_others(chatml: Any) -> None:
    rows = [{**PAIR, "gold": " a dog"}]
    assert made(rows, chatml).report.sources[0].unread == ["gold"]
    assert made(rows, chatml, needs=Needs(roles=("gold",))).report.sources[0].unread == []


# scores


@pytest.mark.parametrize("scores", [{"chosen_score": 3}, {"chosen_score": 3, "rejected_score": None}])
def test_a_lone_score_is_none_and_counted(scores: dict[str, Any], chatml: Any) -> None:
    whole = {**PAIR, "chosen_score": 3, "rejected_score": 1}
    got = made([whole, {**PAIR, **scores}], chatml)
    assert not got.report.bad and [got.table[n].scores for n in (0, 1)] == [(3.0, 1.0), None]
    assert got.table[1].preferences == (Preference(0, 1, 1.0, 0.0),)
    assert "1 pairs with a score for one answer alone, which is not read: d.jsonl:2" in got.report.lines()


def test_a_lone_score_is_a_bad_row_for_a_loss_that_reads_scores(chatml: Any) -> None:
    whole = {**PAIR, "chosen_score": 3, "rejected_score": 1}
    report = made([whole, {**whole, "rejected_score": None}], chatml, needs=SCORED).report
    assert [bad.describe() for bad in report.bad] == ["d.jsonl:2: rejected_score: missing"]
    with pytest.raises(DataError, match="needs a score for each answer"):
        made([{**PAIR, "chosen_score": 3}], chatml, needs=SCORED)


def test_a_column_that_is_taken_away_is_not_read_even_where_it_is_wrong(chatml: Any) -> None:
    rows = [{**PAIR, "chosen_score": "high", "rejected_score": 3, "system": "s"}]
    got = made(rows, chatml, columns={"chosen_score": False, "rejected_score": False, "system": False})
    assert got.table[0].scores is None and first_text(got, chatml) == PAIR["prompt"]
    assert not got.report.bad and not got.report.half_scored.count and not got.report.sources[0].unread


INVERTED = {**PAIR, "chosen_score": 1, "rejected_score": 2.5}


def test_an_inverted_pair_is_kept_swapped_dropped_or_refused(chatml: Any) -> None:
    """Scores 1 and 2.5: the margin of the pair as it stands is -1.5, swapped 1.5."""
    kept, swapped, dropped = (
        made([INVERTED, PAIR], chatml, on_inverted=how) for how in ("keep", "swap", "drop")
    )
    assert kept.table[0].preferences == (Preference(0, 1, 1.0, -1.5),)
    assert swapped.table[0].preferences == (Preference(1, 0, 1.0, 1.5),)
    assert [len(got.table) for got in (kept, swapped, dropped)] == [2, 2, 1]
    for got, policy in ((kept, "kept"), (swapped, "swapped"), (dropped, "left out")):
        assert f"1 pairs whose rejected answer has the higher score {policy}: d.jsonl:1" in got.report.lines()
    with pytest.raises(
        DataError, match=r"d\.jsonl:1: the chosen answer has the score 1, the rejected one 2\.5\. Set"
    ):
        made([INVERTED], chatml, on_inverted="error")


def test_a_soft_label_turns_with_its_pair_and_a_margin_against_it_is_refused(chatml: Any) -> None:
    got = made(
        [{**INVERTED, "soft_label": 0.25}], chatml, on_inverted="swap", needs=Needs(inputs=("soft_label",))
    )
    assert got.table[0].preferences == (Preference(1, 0, 1.0, 1.5, 0.75),)
    with pytest.raises(
        DataError, match="a margin of 2 for the answer with the lower score, so it cannot be swapped"
    ):
        made([{**INVERTED, "margin": 2}], chatml, on_inverted="swap")


@pytest.mark.parametrize(
    ("structure", "answers"), [("responses", [" the car<|endoftext|>"]), ("labelled", None)]
)
def test_other_structures_learn_the_swapped_pair_too(
    structure: str, answers: list[str] | None, chatml: Any
) -> None:
    group = made([INVERTED], chatml, on_inverted="swap", needs=Needs(structure)).table[0]
    if answers is None:
        assert group.labels == (False, True)
    else:
        assert [chatml.decode(answer) for answer in group.responses] == answers
    assert not len(made([INVERTED, INVERTED], chatml, on_inverted="drop", needs=Needs(structure)).table)


def test_ranks_that_contradict_the_scores_are_refused(chatml: Any) -> None:
    row = {"prompt": "q", "responses": ["x", "y"], "scores": [2, 1], "ranks": [1, 2]}
    got = made([row, {**row, "ranks": [2, 1]}], chatml)
    assert len(got.table) == 1
    assert "d.jsonl:2: ranks: calls another answer the best than 'scores'" in got.report.bad[0].describe()


def test_single_answers_of_ties_are_left_out_kept_or_refused_too(chatml: Any) -> None:
    tie = {**PAIR, "chosen_score": 3, "rejected_score": 3}
    ranked = {"prompt": "q", "responses": ["x", "y", "z"], "scores": [5, 5, 2]}
    needs = Needs("responses")
    got = made([tie, PAIR], chatml, needs=needs)
    assert len(got.table) == 1 and got.report.ties.origins == ["d.jsonl:1"]
    assert len(made([tie, PAIR], chatml, needs=needs, on_tie="keep").table) == 2
    assert [chatml.decode(a) for a in made([ranked], chatml, needs=needs).table[0].responses] == [
        "x<|endoftext|>"
    ]
    with pytest.raises(DataError, match=r"d\.jsonl:1: both answers have the score 3"):
        made([tie], chatml, needs=needs, on_tie="error")


# text or messages


def test_a_system_column_means_messages_wherever_its_first_text_is(chatml: Any) -> None:
    rows = [{"question": "what is a fox?", "chosen": "an animal", "rejected": "the car"}] * 70
    late = [*({**row, "system": ""} for row in rows), {**rows[0], "system": "be brief"}]
    absent = [*rows, {**rows[0], "system": "be brief"}]
    for given in (late, absent):
        report = made(given, chatml).report
        assert not report.bad and report.sources[0].layout == "messages" and report.sources[0].rows_read == 71
    only_empty = made([{**row, "system": ""} for row in rows], chatml)
    assert first_text(only_empty, chatml).startswith("<|im_start|>user\n")


def test_an_empty_system_column_stays_text_where_nothing_renders_messages(make_tokenizer: Any) -> None:
    bare = make_tokenizer(template=None)
    assert made([{**PAIR, "system": ""}], bare).report.sources[0].layout == "text"
    with pytest.raises(DataError, match="no chat template"):
        made([{**PAIR, "system": "s"}], bare)


@pytest.mark.parametrize("extra", [{"history": [["a dog?", "yes"]]}, {"tools": [{"name": "f"}]}])
def test_history_and_tools_make_messages_of_plain_text(extra: dict[str, Any], chatml: Any) -> None:
    report = made([PAIR, *[PAIR] * 70, {**PAIR, **extra}], chatml).report
    assert not report.bad and report.sources[0].layout == "messages"
    stays = made([PAIR, {**PAIR, **extra}], chatml, layout="text").report
    assert next(iter(extra)) in stays.bad[0].describe()


def test_a_prompt_of_turns_is_read_as_turns_and_said(chatml: Any, make_tokenizer: Any) -> None:
    rows = [{**PAIR, "prompt": OPEN}]
    got = made(rows, chatml)
    assert first_text(got, chatml) == "<|im_start|>user\nwhat is a fox?<|im_end|>\n<|im_start|>assistant\n"
    assert "prompts of 'Human: … Assistant:' turns are read as messages" in got.report.notes[0]
    for stays in (made(rows, chatml, layout="text"), made(rows, make_tokenizer(template=None))):
        assert first_text(stays, chatml) == OPEN and stays.report.spelled_turns.count == 1


def test_a_prompt_of_turns_among_plain_ones_is_counted(chatml: Any) -> None:
    report = made([PAIR, {**PAIR, "prompt": OPEN}], chatml).report
    assert report.spelled_turns.origins == ["d.jsonl:2"]


def test_text_that_is_json_of_a_message_stays_text_and_is_counted(chatml: Any) -> None:
    told = json.dumps(REPLY)
    rows = [
        {"prompt": [USER], "chosen": said, "rejected": "the car"} for said in ("an animal", "a dog", told)
    ]
    got = made(rows, chatml)
    assert got.report.json_texts.origins == ["d.jsonl:3"]
    assert chatml.decode(got.table[2].responses[0]) == f"{told}<|im_end|>\n"


def test_turns_as_a_json_list_of_texts_are_counted(chatml: Any) -> None:
    """Arenas publish several turns so: it is for their user to part them."""
    row = {"prompt": '["a fox?"]', "response_a": '["yes"]', "response_b": '["no"]', "winner": "model_a"}
    assert made([row], chatml).report.json_texts.count == 1


def test_a_column_of_json_messages_stays_one(chatml: Any) -> None:
    row = {"prompt": json.dumps([USER]), "chosen": json.dumps(REPLY), "rejected": "the car"}
    got = made([row, row, {**row, "chosen": "an animal"}], chatml)
    assert [bad.describe() for bad in got.report.bad] == [
        "d.jsonl:3: chosen: must be messages as JSON text, as in other rows, found 'an animal'"
    ]
    assert "messages written as JSON text are opened: chosen, prompt" in got.report.notes[0]
    assert chatml.decode(got.table[0].responses[0]) == "an animal<|im_end|>\n"


def test_answers_that_repeat_their_prompt_are_counted(chatml: Any) -> None:
    row = {**PAIR, "chosen": "what is a fox? an animal", "rejected": "what is a fox? the car"}
    assert made([row, PAIR], chatml).report.repeated_prompt.origins == ["d.jsonl:1"]


def test_a_prompt_of_another_conversation_is_counted(chatml: Any) -> None:
    row = {
        "prompt": "what is a fox?",
        "chosen": [USER, REPLY],
        "rejected": [USER, {**REPLY, "content": "the car"}],
    }
    assert made([row, {**row, "prompt": "a dog"}], chatml).report.other_prompt.origins == ["d.jsonl:2"]


# which of two is better

CHOICE = {"prompt": "q", "left": "x", "right": "y", "pick": 1}
SIDES = {"first": "left", "second": "right", "better": "pick"}


def test_an_index_that_the_names_do_not_bear_out_is_said(chatml: Any) -> None:
    got = made([CHOICE], chatml, columns=SIDES)
    assert got.table[0].preferences[0][:2] == (1, 0)
    assert "d.jsonl: 'pick' says 0 for 'left' and 1 for 'right'; better_is says otherwise" in got.report.notes


def test_what_better_means_can_be_said_and_then_nothing_else_counts(chatml: Any) -> None:
    rows = [{**CHOICE, "pick": pick} for pick in (1, "2", 0.0, "tie", 3)]
    meaning = {"first": (1,), "second": (2,), "tie": (0,)}
    got = made(rows, chatml, columns=SIDES, better_is=meaning)
    assert [got.table[n].preferences[0][:2] for n in (0, 1)] == [(0, 1), (1, 0)]
    assert got.report.ties.origins == ["d.jsonl:3"]
    assert [bad.describe() for bad in got.report.bad] == [
        f"d.jsonl:{line}: pick: is none of the values that better_is names, found {value}"
        for line, value in ((4, "'tie'"), (5, 3))
    ]


@pytest.mark.parametrize(
    ("names", "better", "value"),
    [
        (("out_a", "out_b"), "pick", 1),
        (("left", "right"), "label", 1),
        (("left", "right"), "left_wins", 0),
        (("left", "right"), "pick", True),
        (("left", "right"), "pick", 2),
    ],
)
def test_a_value_that_could_mean_either_is_refused(names: Any, better: str, value: Any, chatml: Any) -> None:
    row = {"prompt": "q", names[0]: "x", names[1]: "y", better: value}
    columns = {"first": names[0], "second": names[1], "better": better}
    got = made([row], chatml, columns=columns, layout="ranked")
    assert "Say what it means, as better_is: {first: " in got.report.bad[0].describe()


def test_two_winners_are_none(chatml: Any) -> None:
    row = {"prompt": "q", "response_a": "x", "response_b": "y", "winner_model_a": 0, "winner_model_b": 1}
    rows = [row, {**row, "winner_model_b": 0}, {**row, "winner_model_a": 1}]
    got = made(rows, chatml)
    assert got.table[0].preferences[0][:2] == (1, 0) and got.report.ties.origins == ["d.jsonl:2"]
    assert got.report.bad[0].describe() == "d.jsonl:3: winner_model_b: is true, but so is 'winner_model_a'"
