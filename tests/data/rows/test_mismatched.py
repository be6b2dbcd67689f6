"""Mismatched answers: those of the next row with another prompt, whatever the step or the pack."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from prefopt.data.prepare import prepare
from prefopt.data.rows.loss_needs import Needs
from prefopt.data.rows.mismatched import add_mismatched
from prefopt.data.rows.source import Source
from prefopt.errors import DataError
from prefopt.types import TokenizedGroup


def group(prompt: int, *answers: list[int]) -> TokenizedGroup:
    return TokenizedGroup(
        prompts=(np.array([prompt], np.int32),),
        responses=tuple(np.array(answer, np.int32) for answer in answers),
        prompt_of=(0,) * len(answers),
        preferences=(),
        row_id=prompt,
        origin=f"f:{prompt}",
        labels=(True,) * len(answers),
    )


def mismatched(groups: list[TokenizedGroup], max_tokens: int | None = None) -> list[list[list[int]]]:
    found = []
    for got in add_mismatched(groups, max_tokens):
        assert got.roles is not None
        found.append([r.tolist() for r, role in zip(got.responses, got.roles, strict=True) if role == "kl"])
    return found


def test_the_next_row_gives_its_answer_and_the_last_takes_the_first() -> None:
    assert mismatched([group(1, [5]), group(2, [6]), group(3, [7])]) == [[[6]], [[7]], [[5]]]


def test_the_same_prompt_is_passed_over() -> None:
    """Rows 1 1 2 1: the first two take the third's, the third the fourth's, the fourth goes round to the third's."""
    groups = [group(1, [5]), group(1, [6]), group(2, [7]), group(1, [8])]
    assert mismatched(groups) == [[[7]], [[7]], [[8]], [[7]]]


def test_each_answer_gets_one_where_the_next_row_has_as_many() -> None:
    groups = [group(1, [5], [6]), group(2, [7]), group(3, [8], [9], [10])]
    assert mismatched(groups) == [[[7]], [[8]], [[5], [6]]]


def test_they_share_the_prompt_and_are_no_answers() -> None:
    got = add_mismatched([group(1, [5], [6]), group(2, [7], [8])], None)[0]
    assert got.roles == ("answer", "answer", "kl", "kl")
    assert got.prompt_of == (0, 0, 0, 0) and got.labels == (True, True, False, False)


def test_they_are_cut_to_the_room_behind_the_prompt() -> None:
    assert mismatched([group(1, [5]), group(2, [6, 7, 8])], max_tokens=3) == [[[6, 7]], [[5]]]


def test_one_prompt_alone_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"^f:1: kto needs answers to other prompts .* all 2 rows have one prompt"
    ):
        add_mismatched([group(1, [5]), group(1, [6])], None, "kto")
    assert add_mismatched([], None) == []


def test_preparing_adds_them_for_a_loss_that_asks(write: Any, chatml: Any) -> None:
    """A pair taken apart and a labelled answer: two and one mismatched, at most as many as the other row has."""
    pairs = [{"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": "q", "chosen": "c", "rejected": "d"}]
    path = write("d.jsonl", pairs)
    got = prepare([Source(path)], chatml, needs=Needs("labelled", roles=("kl",)))
    assert [chatml.decode(r) for r in got.table[0].responses] == [f"{t}<|endoftext|>" for t in "abcd"]
    assert got.table[0].labels == (True, False, False, False)
    assert (got.report.responses, got.report.others) == (4, {"kl": 4})
    assert "4 answers, 4 answers to other prompts" in got.report.lines()[0]
    sizes = got.table.sizes(share_prompts=True)
    assert sizes.responses.tolist() == [2, 2]
    assert sizes.tokens.tolist() == [1 + 8, 1 + 8]  # the prompt once, four answers of two tokens
    assert prepare([Source(path)], chatml, needs=Needs("labelled")).report.others == {}
