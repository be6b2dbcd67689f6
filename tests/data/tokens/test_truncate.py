"""Cutting keeps the prompt equal for all answers, fits the room and empties nothing."""

from __future__ import annotations

from itertools import product

import pytest

from prefopt.data.tokens.truncate import fit


def slow(
    prompt: list[int], answers: list[list[int]], room: int, mode: str
) -> tuple[list[int], list[list[int]]] | None:
    """Take tokens away one at a time until the longest sequence fits; None where that would empty a side."""
    prompt, answers = list(prompt), [list(answer) for answer in answers]
    while len(prompt) + max(map(len, answers)) > room:
        if mode == "keep_end" and len(prompt) > 1:
            prompt.pop(0)
            continue
        if mode in ("drop", "error"):
            return None
        longest = max(map(len, answers))
        if longest == 1:
            return None
        for answer in answers:
            if len(answer) == longest:
                answer.pop()
    return prompt, answers


@pytest.mark.parametrize("mode", ["keep_start", "keep_end", "drop"])
def test_every_small_combination_equals_cutting_one_token_at_a_time(mode: str) -> None:
    """All prompts to 7 tokens, two answers to 6 tokens each, rooms from 2 to 14."""
    for p, a, b, room in product(range(1, 8), range(1, 7), range(1, 7), range(2, 15)):
        prompt, answers = list(range(p)), [list(range(10, 10 + a)), list(range(20, 20 + b))]
        cut = fit(p, [a, b], room, mode)  # type: ignore[arg-type]
        got = cut and (prompt[cut.prompt_head :], [answer[: cut.answer_room] for answer in answers])
        assert got == slow(prompt, answers, room, mode), (p, a, b, room)
        if got:
            assert got[0] and all(got[1]) and len(got[0]) + max(map(len, got[1])) <= room


def test_prompt_that_fills_the_room_leaves_no_place_for_an_answer() -> None:
    assert fit(8, [1, 1], 8, "keep_start") is None
    assert fit(8, [1, 1], 8, "keep_end") == (1, 1)


def test_what_fits_is_not_cut() -> None:
    assert fit(5, [3, 2], 8, "error") == (0, 3)
