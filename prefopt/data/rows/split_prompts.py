"""Split a row whose texts reply to several prompts into rows of one prompt, and join their tokens again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from prefopt.data.rows.raw_rows import RowError
from prefopt.types import Comparison, Text


@dataclass(frozen=True, slots=True)
class Part:
    """One prompt of a row with everything that replies to it.

    ``at`` says where each of its answers stands in the row: the row's answers first, then its extras.
    """

    row: Comparison
    at: tuple[int, ...]

    def blame(self, error: RowError) -> RowError:
        """Return an error of this part with the answer's number in the whole row."""
        found = re.fullmatch(r"answer (\d+)", error.column)
        if found is None:
            return error
        return RowError(f"answer {self.at[int(found[1]) - 1] + 1}", error.why)


def split(row: Comparison) -> tuple[Part, ...]:
    """Return the parts of a row, one for each prompt that is different, in the order of their first reply."""
    if row.own_prompts is None and not row.extras:
        return (Part(row, tuple(range(len(row.answers)))),)
    own = row.own_prompts or (row.prompt,) * len(row.answers)
    replies: list[tuple[Text, Text]] = list(zip(own, row.answers, strict=True))
    replies += [(row.prompt if extra.prompt is None else extra.prompt, extra.text) for extra in row.extras]
    prompts: list[Text] = []
    for prompt, _ in replies:
        if prompt not in prompts:
            prompts.append(prompt)
    return tuple(_part(row, prompt, replies) for prompt in prompts)


def _part(row: Comparison, prompt: Text, replies: Sequence[tuple[Text, Text]]) -> Part:
    at = tuple(index for index, (own, _) in enumerate(replies) if own == prompt)
    bare = replace(
        row,
        prompt=prompt,
        answers=tuple(replies[index][1] for index in at),
        preferences=(),
        scores=None,
        labels=None,
        own_prompts=None,
        extras=(),
    )
    return Part(bare, at)


def roles_of(row: Comparison) -> tuple[str, ...] | None:
    """Return the role of every reply, or None where all are answers."""
    if not row.extras:
        return None
    return ("answer",) * len(row.answers) + tuple(extra.role for extra in row.extras)
