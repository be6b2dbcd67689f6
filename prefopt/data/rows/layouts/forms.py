"""The forms of rows: whether prompts and answers are messages, of which kind, or plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from prefopt.data.rows.convert import is_messages, is_sharegpt


class Form(NamedTuple):
    """What a row of this form needs, for messages, and whether it becomes messages for the chat template."""

    described: str
    is_chat: bool


FORMS = {
    "messages": Form(
        "prompt, chosen, rejected as messages (role, content); or full conversations in chosen and "
        "rejected; text is taken as one turn",
        True,
    ),
    "sharegpt": Form("conversations, chosen, rejected with from and value", True),
    "transcript": Form("chosen, rejected as whole 'Human: … Assistant: …' texts", True),
    "text": Form("prompt, chosen, rejected as plain text", False),
}
"""By name. A pair of answers is called by its form alone."""


def form_of_answers(prompt: Any, answers: Sequence[Any]) -> str | None:
    """Return the form of a prompt and what replies to it, or None where they have none in common."""
    if prompt is None or answers[0] is None:
        return None
    if any(is_messages(cell) for cell in [prompt, *answers]):
        return "sharegpt" if any(is_sharegpt(cell) for cell in [prompt, *answers]) else "messages"
    return "text" if isinstance(prompt, str) else None
