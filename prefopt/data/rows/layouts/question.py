"""The question that a rationale answers, for data that holds the rationale alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefopt.types import Text


def which_is_better(prompt: Text, chosen: Text, rejected: Text) -> Any:
    """Ask which of two replies is better and why, in the form of the prompt.

    Args:
        prompt: text, or messages.
        chosen: the reply that the rationale argues for; it is named first.
        rejected: the other reply.

    Returns:
        Text that ends with a new line, or one user turn.
    """
    question = (
        f"Here is a message and two replies to it.\n\nMessage:\n{_told(prompt)}\n\nReply 1:\n{_told(chosen)}\n\n"
        f"Reply 2:\n{_told(rejected)}\n\nWhich reply is better, and why?"
    )
    return f"{question}\n" if isinstance(prompt, str) else [{"role": "user", "content": question}]


def _told(text: Text) -> str:
    """Return messages as text; who speaks is said where there is more than one turn."""
    if isinstance(text, str):
        return text.strip()
    turns: Sequence[Any] = text
    if len(turns) == 1:
        return str(turns[0]["content"]).strip()
    return "\n".join(f"{turn['role']}: {str(turn['content']).strip()}" for turn in turns)
