"""Choose the answers of a row that a loss of a given structure learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from prefopt.data.rows.needs import Structure
from prefopt.errors import DataError
from prefopt.types import Comparison, Preference

Policy = Literal["drop", "keep", "error"]


@dataclass(frozen=True, slots=True)
class Choice:
    """The part of a row that is learned from; None where nothing is."""

    row: Comparison | None
    num_ties: int = 0


def choose(row: Comparison, structure: Structure, on_tie: Policy) -> Choice:
    """Keep the answers that ``structure`` needs and the preferences that hold.

    "responses" keeps the preferred or desirable answers alone; "pairs" and "sides" every answer of a
    preference; "lists" all answers unless all are equally good; "all" every answer of every row, to be
    scored rather than learned from.

    Raises:
        DataError: a tie where ``on_tie`` is "error"; a weight where nothing could carry it.
    """
    if structure == "all":
        return Choice(row)
    if structure in ("responses", "sides") and any(pair.weight != 1.0 for pair in row.preferences):
        raise DataError(
            f"{row.origin}: the row has a weight, which belongs to a pair or a list, but this loss learns from "
            f"single answers. Leave the column out, or use a loss over pairs."
        )
    if structure == "responses":
        best = {pair.chosen for pair in row.preferences} if row.labels is None else _desirable(row)
        return Choice(take_answers(row, sorted(best), ()) if best else None)
    if row.labels is not None:
        return Choice(row)
    held, ties = _split_ties(row)
    if structure == "lists":
        ties = [] if held else ties
    if ties and on_tie == "error":
        score = row.scores[ties[0].chosen] if row.scores else 0.0
        raise DataError(
            f"{row.origin}: both answers have the score {score:g}, so neither is preferred. Set rows.on_tie: "
            f"drop to skip such pairs, or keep to train on them."
        )
    kept = tuple(row.preferences) if on_tie == "keep" else tuple(held)
    if structure == "lists":
        return Choice(row if kept else None, len(ties))
    wanted = sorted({index for pair in kept for index in pair[:2]})
    return Choice(take_answers(row, wanted, kept) if kept else None, len(ties))


def take_answers(row: Comparison, wanted: Sequence[int], preferences: Sequence[Preference]) -> Comparison:
    """Return ``row`` with the answers ``wanted`` alone and ``preferences`` renumbered to them."""
    if len(wanted) == len(row.answers) and tuple(preferences) == row.preferences:
        return row
    own_prompts = _at(row.own_prompts, wanted)
    return replace(
        row,
        prompt=own_prompts[0] if own_prompts else row.prompt,
        own_prompts=own_prompts,
        answers=tuple(row.answers[index] for index in wanted),
        preferences=renumber(preferences, wanted),
        scores=_at(row.scores, wanted),
        labels=_at(row.labels, wanted),
    )


def renumber(preferences: Sequence[Preference], wanted: Sequence[int]) -> tuple[Preference, ...]:
    """Return ``preferences`` with the positions that their answers have in ``wanted``."""
    at = {index: new for new, index in enumerate(wanted)}
    return tuple(pair._replace(chosen=at[pair.chosen], rejected=at[pair.rejected]) for pair in preferences)


def _split_ties(row: Comparison) -> tuple[list[Preference], list[Preference]]:
    scores = row.scores
    if scores is None:
        return list(row.preferences), []
    held = [pair for pair in row.preferences if scores[pair.chosen] != scores[pair.rejected]]
    return held, [pair for pair in row.preferences if scores[pair.chosen] == scores[pair.rejected]]


def _desirable(row: Comparison) -> set[int]:
    return {index for index, is_good in enumerate(row.labels or ()) if is_good}


def _at(values: tuple[Any, ...] | None, wanted: Sequence[int]) -> tuple[Any, ...] | None:
    return None if values is None else tuple(values[index] for index in wanted)
