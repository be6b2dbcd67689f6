"""What a structure takes of a data row: which answers, and what it asks of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from prefopt.errors import DataError
from prefopt.types import Comparison, Preference

Handling = Literal["drop", "keep", "error"]
"""What to do with pairs that teach nothing."""


InvertedHandling = Literal["keep", "swap", "drop", "error"]
"""What to do with pairs whose rejected answer has the higher score."""


class Kept(NamedTuple):
    """The part of a row that is learned from, None where nothing is, and how many of its pairs are ties."""

    row: Comparison | None
    num_ties: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RowUse:
    """What is taken of a row.

    Args:
        keep: its answers that are learned from and the preferences that hold; a DataError for ties where
            they are to be errors, or for a weight that nothing could carry.
        compares: answers are compared with each other, so that single labelled ones do not serve.
        one_prompt: compared answers reply to one prompt, unless the loss says otherwise.
        ranks: answers are told apart by their scores, which every row must have, not by its pairs.
        drops_identical: a pair of identical answers teaches nothing.
        labels: every answer is desirable or not; a pair becomes one of each.
    """

    keep: Callable[[Comparison, Handling], Kept]
    compares: bool
    one_prompt: bool
    ranks: bool
    drops_identical: bool
    labels: bool


EVERY_ANSWER = RowUse(
    keep=lambda row, on_tie: Kept(row),
    compares=False,
    one_prompt=False,
    ranks=False,
    drops_identical=False,
    labels=False,
)
"""What is taken where nothing is learned: every answer of every row, to be scored."""


def keep_pairs(row: Comparison, on_tie: Handling) -> Kept:
    """Keep every answer of a preference that holds; all of a row of labelled answers."""
    if row.labels is not None:
        return Kept(row)
    held, ties = split_ties(row)
    refuse_ties(row, ties, on_tie)
    kept = tuple(row.preferences) if on_tie == "keep" else tuple(held)
    wanted = sorted({index for pair in kept for index in pair[:2]})
    return Kept(take_answers(row, wanted, kept) if kept else None, len(ties))


def settle_inverted(row: Comparison, on_inverted: InvertedHandling) -> tuple[Comparison, int]:
    """Return a row with its inverted pairs kept, swapped or left out, and how many there are.

    Args:
        row: all of its answers stay.
        on_inverted: "swap" takes the answer with the higher score as the chosen one.

    Raises:
        DataError: there is one and it is not allowed, or what else the row says of it cannot be swapped.
    """
    scores = row.scores
    inverted = [p for p in row.preferences if scores is not None and scores[p.chosen] < scores[p.rejected]]
    if not inverted or scores is None or on_inverted == "keep":
        return row, len(inverted)
    if on_inverted == "error":
        pair = inverted[0]
        raise DataError(
            f"{row.origin}: the chosen answer has the score {scores[pair.chosen]:g}, the rejected one "
            f"{scores[pair.rejected]:g}. Set rows.on_inverted: keep to train on such pairs as they are, swap to go "
            f"by the scores, or drop to skip them."
        )
    if on_inverted == "drop":
        kept = tuple(pair for pair in row.preferences if pair not in inverted)
    else:
        kept = tuple(_swapped(row, pair) if pair in inverted else pair for pair in row.preferences)
    return replace(row, preferences=kept), len(inverted)


def _swapped(row: Comparison, pair: Preference) -> Preference:
    if pair.margin > 0:
        what = f"a margin of {pair.margin:g} for the answer with the lower score"
    elif any(extra.role == "rationale" for extra in row.extras):
        what = "a rationale for the answer with the lower score"
    else:
        soft = None if pair.soft_label is None else 1 - pair.soft_label
        return Preference(pair.rejected, pair.chosen, pair.weight, -pair.margin, soft)
    raise DataError(
        f"{row.origin}: the row has {what}, so it cannot be swapped. Set rows.on_inverted: keep or drop."
    )


def split_ties(row: Comparison) -> tuple[list[Preference], list[Preference]]:
    """Return the preferences of a row that its scores bear out, and those between equal scores."""
    scores = row.scores
    if scores is None:
        return list(row.preferences), []
    held = [pair for pair in row.preferences if scores[pair.chosen] != scores[pair.rejected]]
    return held, [pair for pair in row.preferences if scores[pair.chosen] == scores[pair.rejected]]


def refuse_ties(row: Comparison, ties: Sequence[Preference], on_tie: Handling) -> None:
    """Refuse a row with ties where they are to be errors."""
    if ties and on_tie == "error":
        score = row.scores[ties[0].chosen] if row.scores else 0.0
        raise DataError(
            f"{row.origin}: both answers have the score {score:g}, so neither is preferred. Set rows.on_tie: "
            f"drop to skip such pairs, or keep to train on them."
        )


def refuse_weights(row: Comparison) -> None:
    """Refuse the weight of a row whose answers are learned from one by one."""
    if any(pair.weight != 1.0 for pair in row.preferences):
        raise DataError(
            f"{row.origin}: the row has a weight, which belongs to a pair or a list, but this loss learns from "
            f"single answers. Leave the column out, or use a loss over pairs."
        )


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


def _at(values: tuple[Any, ...] | None, wanted: Sequence[int]) -> tuple[Any, ...] | None:
    return None if values is None else tuple(values[index] for index in wanted)
