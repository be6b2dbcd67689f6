"""Rows with several prompts: what replies to which, and what becomes of the tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from prefopt.data.packs.pack import pack
from prefopt.data.prepare import Prepared, prepare
from prefopt.data.rows.loss_needs import Needs
from prefopt.data.rows.raw_rows import RowError
from prefopt.data.rows.source import Source
from prefopt.data.rows.split_prompts import split
from prefopt.errors import DataError
from prefopt.types import Comparison, Extra, Preference

TWO = Needs(prompts=("two",), loss="joint_prompt")
CONTRAST = Needs(prompts=("contrast",), loss="prompt_contrast")
PAIR = {"prompt": "what is a fox?", "chosen": " an animal", "rejected": " the car"}
JOINT = {
    "chosen_prompt": "what is a fox?",
    "chosen": " an animal",
    "rejected_prompt": "who is the dog?",
    "rejected": " nobody",
}
ONE_ANSWER = {"chosen_prompt": "Be short.", "rejected_prompt": "Be long.", "completion": " the dog"}


def comparison(**changes: Any) -> Comparison:
    fields: dict[str, Any] = {
        "prompt": "p",
        "answers": ("a", "b"),
        "preferences": (Preference(0, 1),),
        "row_id": 3,
        "origin": "f:4",
    }
    return Comparison(**(fields | changes))


def texts(got: Prepared, tokenizer: Any, index: int = 0) -> list[tuple[str, str]]:
    group = got.table[index]
    decode = tokenizer.decode
    return [
        (decode(group.prompts[n]), decode(answer))
        for n, answer in zip(group.prompt_of, group.responses, strict=True)
    ]


def run(rows: list[dict[str, Any]], needs: Needs, write: Any, tokenizer: Any, **settings: Any) -> Prepared:
    return prepare([Source(write("d.jsonl", rows))], tokenizer, needs=needs, **settings)


def test_a_row_with_one_prompt_is_one_part() -> None:
    row = comparison()
    (part,) = split(row)
    assert part.row is row and part.at == (0, 1)


def test_replies_are_grouped_by_prompt_in_the_order_of_the_first() -> None:
    """A and g reply to p, b to q, r to s: three parts."""
    row = comparison(own_prompts=("p", "q"), extras=(Extra("gold", "g"), Extra("rationale", "r", "s")))
    parts = split(row)
    assert [(part.row.prompt, part.row.answers, part.at) for part in parts] == [
        ("p", ("a", "g"), (0, 2)),
        ("q", ("b",), (1,)),
        ("s", ("r",), (3,)),
    ]
    assert parts[0].blame(RowError("answer 2", "empty")).column == "answer 3"
    assert parts[2].blame(RowError("prompt", "empty")).column == "prompt"


def test_both_answers_keep_their_own_prompt(write: Any, chatml: Any) -> None:
    got = run([JOINT], TWO, write, chatml)
    assert texts(got, chatml) == [
        ("what is a fox?", " an animal<|endoftext|>"),
        ("who is the dog?", " nobody<|endoftext|>"),
    ]
    assert got.table[0].preferences == (Preference(0, 1),)
    assert got.report.two_prompts.count == 1
    assert any(
        "1 pairs whose answers reply to different prompts, which share nothing" in line
        for line in got.report.lines()
    )


def test_the_other_names_of_the_columns(write: Any, chatml: Any) -> None:
    row = {
        "prompt_chosen": JOINT["chosen_prompt"],
        "response_chosen": JOINT["chosen"],
        "prompt_rejected": JOINT["rejected_prompt"],
        "response_rejected": JOINT["rejected"],
    }
    assert texts(run([row], TWO, write, chatml), chatml) == texts(run([JOINT], TWO, write, chatml), chatml)


def test_messages_have_prompts_of_their_own_too(write: Any, chatml: Any) -> None:
    row = {
        "system": "s",
        "chosen_prompt": [{"role": "user", "content": "q"}],
        "chosen": "a",
        "rejected_prompt": [{"role": "user", "content": "r"}],
        "rejected": [{"role": "assistant", "content": "b"}],
    }
    head = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n"
    tail = "<|im_end|>\n<|im_start|>assistant\n"
    assert texts(run([row], TWO, write, chatml), chatml) == [
        (f"{head}q{tail}", "a<|im_end|>\n"),
        (f"{head}r{tail}", "b<|im_end|>\n"),
    ]


def test_equal_prompts_are_shared_and_one_may_be_left_to_the_row(write: Any, chatml: Any) -> None:
    equal = run([{**JOINT, "rejected_prompt": JOINT["chosen_prompt"]}], Needs(), write, chatml)
    assert len(equal.table[0].prompts) == 1 and not equal.report.two_prompts.count
    row = {**PAIR, "rejected_prompt": "who is the dog?"}
    assert [prompt for prompt, _ in texts(run([row], TWO, write, chatml), chatml)] == [
        "what is a fox?",
        "who is the dog?",
    ]


def test_a_loss_over_one_prompt_refuses_two(write: Any, chatml: Any) -> None:
    message = (
        r"d\.jsonl:1: 'chosen_prompt' and 'rejected_prompt' differ, but dpo compares answers to one prompt"
    )
    with pytest.raises(DataError, match=message):
        run([JOINT], Needs(loss="dpo"), write, chatml)


def test_a_loss_over_lists_refuses_two_prompts(write: Any, chatml: Any) -> None:
    """It would rank an answer to one question above an answer to another."""
    needs = Needs("lists", inputs=("answer_score",), loss="plackett_luce")
    row = {**JOINT, "chosen_score": 2, "rejected_score": 1}
    with pytest.raises(
        DataError, match=r"differ, but plackett_luce compares answers to one prompt\. Use joint_prompt"
    ):
        run([row], needs, write, chatml)
    same = run([{**row, "rejected_prompt": JOINT["chosen_prompt"]}], needs, write, chatml)
    assert len(same.table) == 1


@pytest.mark.parametrize("structure", ["responses", "labelled", None])
def test_a_loss_over_single_answers_takes_each_with_its_prompt(
    structure: Any, write: Any, chatml: Any
) -> None:
    got = texts(run([JOINT], Needs(structure), write, chatml), chatml)
    assert got[0] == ("what is a fox?", " an animal<|endoftext|>")
    assert len(got) == (1 if structure == "responses" else 2)


def test_one_answer_to_two_prompts_is_a_pair_and_not_identical(write: Any, chatml: Any) -> None:
    got = run([ONE_ANSWER], CONTRAST, write, chatml)
    assert texts(got, chatml) == [
        ("Be short.", " the dog<|endoftext|>"),
        ("Be long.", " the dog<|endoftext|>"),
    ]
    assert not got.report.identical.count and got.report.pairs == 1
    spelled = {**JOINT, "rejected": JOINT["chosen"]}
    assert run([spelled], CONTRAST, write, chatml).report.pairs == 1


def test_one_answer_to_one_prompt_is_identical(write: Any, chatml: Any) -> None:
    got = run([{**ONE_ANSWER, "rejected_prompt": "Be short."}], CONTRAST, write, chatml)
    assert got.report.identical.count == 1 and len(got.table) == 0


def test_prompts_that_truncation_makes_equal_are_identical(write: Any, chatml: Any) -> None:
    """Only the end of each prompt is kept, and both end alike."""
    row = {"chosen_prompt": "a b c d. Go", "rejected_prompt": "e f g h. Go", "completion": " the dog"}
    room = len(chatml("Go the dog<|endoftext|>")["input_ids"])
    got = run([row], CONTRAST, write, chatml, max_tokens=room, truncate="keep_end")
    assert got.report.identical.count == 1 and got.report.truncated.count == 1


def test_a_contrast_of_different_answers_is_a_bad_row(write: Any, chatml: Any) -> None:
    (bad,) = run([JOINT], CONTRAST, write, chatml).report.bad
    assert bad.describe().endswith(
        "d.jsonl:1: rejected: differs from 'chosen', but prompt_contrast compares one answer to two prompts"
    )


def test_gold_replies_to_the_prompt_and_is_no_answer(write: Any, chatml: Any) -> None:
    row = {**PAIR, "reference": " a wild dog", "chosen_score": 2, "rejected_score": 1}
    got = run([row], Needs(roles=("gold",)), write, chatml)
    group = got.table[0]
    assert texts(got, chatml)[2] == ("what is a fox?", " a wild dog<|endoftext|>")
    assert group.roles == ("answer", "answer", "gold") and len(group.prompts) == 1
    np.testing.assert_array_equal(group.scores, (2.0, 1.0, np.nan))
    assert (got.report.responses, got.report.others) == (2, {"gold": 1})
    assert "1 pairs in 1 groups, 1 gold answers" in got.report.lines()[0]
    assert len(run([row], Needs(), write, chatml).table[0].responses) == 2


def test_gold_may_be_the_end_of_a_whole_conversation(write: Any, chatml: Any) -> None:
    user = {"role": "user", "content": "q"}
    row = {
        name: [user, {"role": "assistant", "content": text}]
        for name, text in (("chosen", "a"), ("rejected", "b"), ("gold", "c"))
    }
    for gold in (row["gold"], "c"):
        got = texts(run([{**row, "gold": gold}], Needs(roles=("gold",)), write, chatml), chatml)
        assert [answer for _, answer in got] == ["a<|im_end|>\n", "b<|im_end|>\n", "c<|im_end|>\n"]


def test_gold_of_a_ranked_row_stands_beside_all_its_answers(write: Any, chatml: Any) -> None:
    row = {"prompt": "q", "responses": ["x", "y", "z"], "scores": [1, 3, 2], "gold": "g"}
    group = run([row], Needs(roles=("gold",)), write, chatml).table[0]
    assert group.roles == ("answer", "answer", "answer", "gold") and len(group.preferences) == 2


def test_a_dropped_answer_takes_its_prompt_along_and_leaves_gold(write: Any, chatml: Any) -> None:
    """Z ties with the best, so its pair is left out; gold moves up."""
    row = {"prompt": "q", "responses": ["x", "y", "z"], "scores": [1, 3, 3], "gold": "g"}
    got = run([row], Needs(roles=("gold",)), write, chatml)
    assert [answer for _, answer in texts(got, chatml)] == [f"{t}<|endoftext|>" for t in "xyg"]


def test_a_rationale_answers_a_question_about_both_answers(write: Any, chatml: Any) -> None:
    row = {**PAIR, "rationale": "foxes live"}
    got = run([row], Needs(roles=("rationale",)), write, chatml)
    prompt, text = texts(got, chatml)[2]
    assert text == "foxes live<|endoftext|>"
    assert all(
        part in prompt for part in ("what is a fox?", "Reply 1:\nan animal", "Reply 2:\nthe car", "why?")
    )
    assert got.table[0].prompt_of == (0, 0, 1) and got.report.others == {"rationale": 1}


def test_a_rationale_may_bring_its_question(write: Any, chatml: Any) -> None:
    row = {**PAIR, "rationale": "foxes live", "rationale_prompt": "why the first?"}
    assert texts(run([row], Needs(roles=("rationale",)), write, chatml), chatml)[2][0] == "why the first?"


def test_the_question_names_the_chosen_answer_first_in_messages_too(write: Any, chatml: Any) -> None:
    row = {
        "context": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "m"},
            {"role": "user", "content": "n"},
        ],
        "response_a": "x",
        "response_b": "y",
        "better": "b",
        "rationale": "so",
    }
    prompt, text = texts(run([row], Needs(roles=("rationale",)), write, chatml), chatml)[2]
    assert "user: q\nassistant: m\nuser: n" in prompt and "Reply 1:\ny\n\nReply 2:\nx" in prompt
    assert prompt.startswith("<|im_start|>user\nHere is") and text == "so<|im_end|>\n"


def test_two_prompts_and_a_rationale_need_its_question(write: Any, chatml: Any) -> None:
    needs = Needs(roles=("rationale",), prompts=("two",))
    (bad,) = run([{**JOINT, "rationale": "so"}], needs, write, chatml).report.bad
    assert "rationale: has no question" in bad.describe()
    assert (
        run([{**JOINT, "rationale": "so", "rationale_prompt": "why?"}], needs, write, chatml).report.pairs
        == 1
    )


def test_a_rationale_that_does_not_fit_leaves_the_row_out(write: Any, chatml: Any) -> None:
    row = {**PAIR, "rationale": "foxes live"}
    needs = Needs(roles=("rationale",))
    got = run([row], needs, write, chatml, max_tokens=20)
    assert got.report.too_long.count == 1 and len(got.table) == 0


def test_two_prompts_are_laid_down_apart_and_scored_apart(write: Any, chatml: Any) -> None:
    group = run([JOINT], TWO, write, chatml).table[0]
    batch = pack([group])
    first, second = (len(prompt) for prompt in group.prompts)
    one, two = (len(answer) for answer in group.responses)
    assert batch.segments.lengths == (first, one, second, two)
    assert batch.segments.parents == (-1, 0, -1, 2)
    assert batch.position_ids[first + one :].tolist() == list(range(second + two))


def test_embeddings_are_read_as_float32(write: Any, chatml: Any) -> None:
    needs = Needs(inputs=("prompt_embedding",))
    got = run([{**PAIR, "prompt_embedding": [1, -0.5]}] * 2, needs, write, chatml)
    np.testing.assert_array_equal(got.table.prompt_embedding, np.array([[1, -0.5]] * 2, np.float32))
    assert pack([got.table[0], got.table[1]]).prompt_embedding.tolist() == [[1, -0.5]] * 2
    with pytest.raises(
        DataError, match=r"d\.jsonl:2: the prompt embedding has 1 numbers, that of .*d\.jsonl:1 2\."
    ):
        run([{**PAIR, "prompt_embedding": [1, 2]}, {**PAIR, "prompt_embedding": [1]}], needs, write, chatml)


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        ([], "must be a list of numbers, found list []"),
        ("x", "must be a list of numbers, found str 'x'"),
        ([1, "2"], "must be a number, found str '2'"),
        ([1, True], "must be a number, found bool true"),
        ([1e300], "holds a number too large for float32"),
        ([1, 10**400], "holds a number too large for float32"),
    ],
)
def test_a_cell_that_is_no_embedding_is_a_bad_row(cell: Any, why: str, write: Any, chatml: Any) -> None:
    rows = [{**PAIR, "prompt_embedding": [1, 2]}, {**PAIR, "prompt_embedding": cell}]
    (bad,) = run(rows, Needs(inputs=("prompt_embedding",)), write, chatml).report.bad
    assert bad.why == why
