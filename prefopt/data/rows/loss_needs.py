"""What a loss asks of the rows, and the refusal of a source whose columns cannot give it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefopt.errors import DataError
from prefopt.structures import RowUse, rows_for

if TYPE_CHECKING:
    from prefopt.data.rows.layouts.layout import RowLayout


@dataclass(frozen=True, slots=True)
class Needs:
    """What a loss learns from, as far as preparing rows must know it.

    Args:
        structure: the units, a name of ``structures.STRUCTURES``; None learns nothing, every answer is scored.
        roles: responses besides the answers, of ``types.ROLES``.
        inputs: the names of ``types.INPUTS`` that the loss cannot do without.
        optional: those that it takes where the data has them.
        prompts: of ``types.PROMPTS``, whether a pair's answers may reply to different prompts.
        loss: what messages call it; the only field that changes nothing in the result.
    """

    structure: str | None = "pairs"
    roles: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    loss: str = "this loss"

    @property
    def key(self) -> list[str | list[str] | None]:
        """All that decides what becomes of a row, for the key of a cache."""
        lists = (self.roles, self.inputs, self.optional, self.prompts)
        return [self.structure, *(sorted(names) for names in lists)]

    @property
    def use(self) -> RowUse:
        """What is taken of a row."""
        return rows_for(self.structure)

    @property
    def reads_scores(self) -> bool:
        """Whether the loss cannot do without the scores of a pair's answers."""
        return self.use.ranks or not {"chosen_score", "rejected_score", "answer_score"}.isdisjoint(
            self.inputs
        )

    def reads(self, column: str) -> bool:
        """Whether the loss reads a column that is left alone unless a loss asks for it."""
        return READ_FOR[column] in (*self.roles, *self.inputs, *self.optional)


PAIR_NEEDS = Needs()
"""What a plain loss over pairs needs."""

READ_FOR = {
    "gold": "gold",
    "rationale": "rationale",
    "rationale_prompt": "rationale",
    "prompt_embedding": "prompt_embedding",
}
"""Columns that are read only for a loss that names this role or input."""


def check_served(layout: RowLayout, needs: Needs, place: str) -> None:
    """Refuse a loss that rows of ``layout`` cannot serve.

    Raises:
        DataError: says what the loss needs, which columns were found, and what to add.
    """
    lacking = _structure_lacking(layout, needs) or _columns_lacking(layout, needs)
    if lacking is not None:
        what, way_out = lacking
        found = ", ".join(layout.found)
        raise DataError(f"{place}: {needs.loss} {what}; columns found: {found}. {way_out}.")


Lacking = tuple[str, str] | None
"""What is needed and not there, and what to do about it."""


def _structure_lacking(layout: RowLayout, needs: Needs) -> Lacking:
    if needs.use.compares and not layout.layout.compares:
        return (
            "compares answers to one prompt, but the rows are single labelled answers",
            "Give rows with chosen and rejected answers, or use a loss for labelled answers",
        )
    if needs.use.ranks and not layout.gives("scores"):
        return (
            "reads lists of scored answers, but the rows have no number per answer",
            "Give responses with scores or ranks, or chosen_score and rejected_score",
        )
    if "contrast" in needs.prompts and not layout.has_own_prompts:
        return (
            "compares one answer to two prompts, but the rows have one prompt",
            "Give chosen_prompt and rejected_prompt, and the answer as completion",
        )
    return None


def _columns_lacking(layout: RowLayout, needs: Needs) -> Lacking:
    for name in ("gold", "rationale"):
        if name in needs.roles and name not in layout.columns:
            return f"needs a {name} text in every row", f"Add a column {name}, or map one: {_map(name)}"
    for name in needs.inputs:
        if name in ("chosen_score", "rejected_score", "answer_score") and not layout.gives("scores"):
            way_out = f"Add chosen_score and rejected_score, or map them: {_map('chosen_score')}"
            return "needs a score for each answer", way_out
        if name == "pair_margin" and not layout.gives("margin"):
            return (
                "needs a margin for each pair",
                f"Add a column margin, or scores, or map one: {_map('margin')}",
            )
        if name in ("soft_label", "prompt_embedding") and name not in layout.columns:
            return f"needs a {name} in every row", f"Add that column, or map one: {_map(name)}"
    return None


def _map(name: str) -> str:
    return f"columns: {{{name}: …}}"
