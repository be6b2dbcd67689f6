"""The columns of rows: what sources call them, and how one is found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefopt.data.rows.convert import MISSING, cell_at
from prefopt.data.rows.source import Source
from prefopt.errors import DataError

Tiers = tuple[tuple[str, ...], ...]
"""The names that a column may have; the first tier that is present wins, and only one name of it may be there."""

SPARSE = ("system", "history", "tools", "chosen_score", "rejected_score", "margin", "soft_label", "weight")
"""Columns that may first appear anywhere in a source."""

OWN_PROMPTS = ("chosen_prompt", "rejected_prompt")
"""The prompts of a pair whose answers may reply to different ones."""

OF_PAIR = ("margin", "soft_label", "weight", "prompt_embedding")
"""What a pair may have besides its texts and scores."""

FURTHER = ("gold", "rationale", "rationale_prompt")
"""Texts that are none of the answers."""

SHARED: dict[str, Tiers] = {
    "prompt": (
        ("prompt",),
        ("question.full_text",),
        ("question", "instruction", "query", "input.messages"),
        ("conversations", "conversation", "messages", "context"),
        ("input",),
    ),
    "chosen_prompt": (("chosen_prompt",), ("prompt_chosen",)),
    "rejected_prompt": (("rejected_prompt",), ("prompt_rejected",)),
    "completion": (("completion",), ("response", "answer", "output")),
    "system": (("system",), ("system_prompt",)),
    "history": (("history",),),
    "tools": (("tools",), ("input.tools",)),
    "chosen_score": (("chosen_score",), ("score_chosen", "chosen_rating", "chosen-rating", "rating_chosen")),
    "rejected_score": (
        ("rejected_score",),
        ("score_rejected", "rejected_rating", "rejected-rating", "rating_rejected"),
    ),
    "margin": (("margin",),),
    "soft_label": (("soft_label",),),
    "weight": (("weight",),),
    "gold": (("gold",), ("reference",)),
    "rationale": (("rationale",),),
    "rationale_prompt": (("rationale_prompt",),),
    "prompt_embedding": (("prompt_embedding",),),
}
"""Columns that more than one layout reads: canonical name -> the names it may have in a source."""

NAMED_TOGETHER = {
    ("first", "second"): (
        ("response_0", "response_1"),
        ("response_a", "response_b"),
        ("answer_a", "answer_b"),
        ("completion_a", "completion_b"),
        ("response_1", "response_2"),
        ("response1", "response2"),
        ("answer_0", "answer_1"),
        ("conversation_a", "conversation_b"),
        ("conv_A", "conv_B"),
        ("human_ref_A", "human_ref_B"),
    ),
    ("first_score", "second_score"): (
        ("score_0", "score_1"),
        ("score_A", "score_B"),
        ("conv_A_rating", "conv_B_rating"),
    ),
    ("first_wins", "second_wins"): (("winner_model_a", "winner_model_b"),),
}
"""Columns of which both must go by names of one kind."""

TEXTS = (
    "prompt",
    *OWN_PROMPTS,
    "chosen",
    "rejected",
    "completion",
    "messages",
    "first",
    "second",
    "responses",
    *FURTHER,
)
"""Columns that hold texts or messages."""

NEEDS_TURNS = ("system", "history", "tools")
"""Columns that only messages have a place for."""

BEFORE_PROMPT = {
    "chat_history": "history",
    "conversation_history": "history",
    "dialog_history": "history",
    "dialogue_history": "history",
    "previous_messages": "history",
    "system_message": "system",
    "system_instruction": "system",
    "initial_reason_steps": None,
}
"""Columns that belong to a prompt or to its answers by their name, and which column could read them."""

MAYBE_PROMPT = ("context", "input", "instruction", "question", "query", "document", "passage", "persona")
"""Columns that may be part of a prompt where another column is read as the prompt."""


def find(
    name: str, aliases: Mapping[str, Tiers], values: Sequence[Mapping[str, Any]], source: Source
) -> str | None:
    """Return the path of column ``name`` in any of ``values``, as the source gives it or by its aliases.

    Raises:
        DataError: two columns could be it.
    """
    given = (source.columns or {}).get(name)
    if given is False:
        return None
    if given is not None:
        return given if has(values, given) else None
    for together, kinds in NAMED_TOGETHER.items():
        if name in together:
            kind = next((kind for kind in kinds if all(has(values, path) for path in kind)), together)
            path = kind[together.index(name)]
            return path if has(values, path) else None
    for tier in aliases[name]:
        paths = [path for path in tier if has(values, path)]
        if len(paths) > 1:
            both = " and ".join(f"'{path}'" for path in paths)
            raise DataError(
                f"{source.place}: {both} could each be the {name}. Name one: columns: {{{name}: {paths[0]}}}."
            )
        if paths:
            return paths[0]
    return None


def is_unread(path: str, source: Source) -> bool:
    """Whether the recipe says that a column of the rows is not to be read."""
    return (source.columns or {}).get(path) is False


def has(values: Sequence[Mapping[str, Any]], path: str) -> bool:
    """Whether any of ``values`` has something at a path."""
    return any(cell_at(value, path) not in (MISSING, None) for value in values)
