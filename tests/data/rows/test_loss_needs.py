"""A loss that the columns cannot serve is refused before anything is tokenized, in one line."""

from __future__ import annotations

import re
from typing import Any

import pytest

from prefopt.data.prepare import prepare
from prefopt.data.rows.loss_needs import Needs
from prefopt.data.rows.source import Source
from prefopt.errors import DataError

PAIR = {"prompt": "what is a fox?", "chosen": " an animal", "rejected": " the car"}
LABELLED = {"prompt": "q", "completion": "a", "label": True}
CHOICE = {"prompt": "q", "response_a": "x", "response_b": "y", "better": "a"}
RANKED = {"prompt": "q", "responses": ["x", "y"], "scores": [2, 1]}

REFUSED = {
    "labelled for pairs": (
        LABELLED,
        Needs("pairs", loss="dpo"),
        "dpo compares answers to one prompt, but the rows",
    ),
    "labelled for lists": (
        LABELLED,
        Needs("lists"),
        "this loss compares answers to one prompt, but the rows are",
    ),
    "no scores for lists": (
        PAIR,
        Needs("lists"),
        "reads lists of scored answers, but the rows have no number",
    ),
    "no scores": (
        PAIR,
        Needs(inputs=("chosen_score",)),
        "needs a score for each answer; columns found: prompt",
    ),
    "one score": (
        {**PAIR, "chosen_score": 1},
        Needs(inputs=("chosen_score", "rejected_score")),
        "needs a score for each answer",
    ),
    "no scores in a choice": (CHOICE, Needs(inputs=("rejected_score",)), "needs a score for each answer"),
    "no margin": (PAIR, Needs(inputs=("pair_margin",)), "needs a margin for each pair; columns found: "),
    "no margin in a choice": (CHOICE, Needs(inputs=("pair_margin",)), "needs a margin for each pair"),
    "no soft label": (
        PAIR,
        Needs(inputs=("soft_label",)),
        "needs a soft_label in every row; columns found: ",
    ),
    "no soft label when ranked": (RANKED, Needs(inputs=("soft_label",)), "needs a soft_label in every row"),
    "no embedding": (PAIR, Needs(inputs=("prompt_embedding",)), "needs a prompt_embedding in every row"),
    "no gold": (
        PAIR,
        Needs(roles=("gold",)),
        "needs a gold text in every row; columns found: prompt, chosen,",
    ),
    "no rationale": (PAIR, Needs(roles=("rationale",)), "needs a rationale text in every row"),
    "one prompt": (
        PAIR,
        Needs(prompts=("contrast",)),
        "compares one answer to two prompts, but the rows have one",
    ),
}


@pytest.mark.parametrize(("row", "needs", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_the_columns_cannot_give_is_refused(
    row: dict[str, Any], needs: Needs, message: str, write: Any, chatml: Any
) -> None:
    path = write("d.jsonl", [row])
    with pytest.raises(DataError) as caught:
        prepare([Source(path)], chatml, needs=needs)
    text = str(caught.value)
    assert text.startswith(f"{path}: {needs.loss} ") and message in text
    assert f"columns found: {', '.join(row)}. " in text
    assert "\n" not in text and re.search(r"\. (Give|Add) [^.]+\.$", text)


SERVED = {
    "scores of pairs": ({**PAIR, "chosen_score": 2, "rejected_score": 1}, Needs(inputs=("chosen_score",))),
    "scores of ranked": (RANKED, Needs(inputs=("chosen_score", "rejected_score"))),
    "lists of pairs": (
        {**PAIR, "chosen_score": 2, "rejected_score": 1},
        Needs("lists", inputs=("answer_score",)),
    ),
    "gap as margin": ({**PAIR, "chosen_score": 2, "rejected_score": 1}, Needs(inputs=("pair_margin",))),
    "strength as margin": (
        {"prompt": "q", "response_1": "x", "response_2": "y", "preference_strength": -2},
        Needs(inputs=("pair_margin",)),
    ),
    "labelled for labelled answers": (LABELLED, Needs("labelled")),
    "pairs for labelled answers": (PAIR, Needs("labelled")),
    "everything to score": (LABELLED, Needs(None)),
}


@pytest.mark.parametrize(("row", "needs"), SERVED.values(), ids=SERVED.keys())
def test_what_the_columns_can_give_is_taken(
    row: dict[str, Any], needs: Needs, write: Any, chatml: Any
) -> None:
    assert len(prepare([Source(write("d.jsonl", [row]))], chatml, needs=needs).table) == 1


@pytest.mark.parametrize(
    ("column", "needs"),
    [
        ("chosen_score", Needs(inputs=("chosen_score", "rejected_score"))),
        ("chosen_score", Needs("lists", inputs=("answer_score",))),
        ("soft_label", Needs(inputs=("soft_label",))),
        ("prompt_embedding", Needs(inputs=("prompt_embedding",))),
        ("gold", Needs(roles=("gold",))),
        ("rationale", Needs(roles=("rationale",))),
    ],
)
def test_a_row_without_what_the_others_have_is_bad(
    column: str, needs: Needs, write: Any, chatml: Any
) -> None:
    whole = {
        **PAIR,
        "chosen_score": 2,
        "rejected_score": 1,
        "soft_label": 0.9,
        "prompt_embedding": [1.0],
        "gold": " a fox",
        "rationale": " it is",
    }
    gone = ("chosen_score", "rejected_score") if column == "chosen_score" else (column,)
    partial = {key: value for key, value in whole.items() if key not in gone}
    path = write("d.jsonl", [whole, partial])
    report = prepare([Source(path)], chatml, needs=needs).report
    assert [bad.describe() for bad in report.bad] == [f"{path}:2: {column}: missing"]
    assert not prepare([Source(path)], chatml).report.bad  # a loss that does not read them does not care


def test_a_column_that_is_mapped_and_not_read_is_refused(write: Any, chatml: Any) -> None:
    path = write("d.jsonl", [{**PAIR, "best": " a fox"}])
    source = Source(path, columns={"gold": "best"})
    with pytest.raises(DataError, match=r"d\.jsonl: columns\.gold: dpo does not read it\. Take it out\.$"):
        prepare([source], chatml, needs=Needs(loss="dpo"))
    assert prepare([source], chatml, needs=Needs(roles=("gold",))).report.others == {"gold": 1}


@pytest.mark.parametrize("structure", ["responses", "labelled"])
def test_a_weight_that_no_unit_can_carry_is_refused(structure: Any, write: Any, chatml: Any) -> None:
    path = write("d.jsonl", [{**PAIR, "weight": 2}])
    with pytest.raises(DataError, match="the row has a weight, which belongs to a pair or a list"):
        prepare([Source(path)], chatml, needs=Needs(structure))


def test_what_a_loss_can_do_without_is_read_where_it_is(write: Any, chatml: Any) -> None:
    needs = Needs(optional=("prompt_embedding",))
    rows = [{**PAIR, "prompt_embedding": [1.0, 2.0]}]
    assert prepare([Source(write("d.jsonl", rows))], chatml, needs=needs).table.prompt_embedding is not None
    assert prepare([Source(write("e.jsonl", [PAIR]))], chatml, needs=needs).table.prompt_embedding is None
