"""The forms of rows: whether prompts and answers are messages, of which kind, or plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from prefopt.data.rows.messages import is_messages, is_open_transcript, is_sharegpt, is_transcript


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
    "transcript": Form(
        "chosen, rejected as whole 'Human: … Assistant: …' texts, or as answers to such a prompt", True
    ),
    "text": Form("prompt, chosen, rejected as plain text", False),
}
"""By name. A pair of answers is called by its form alone."""


def form_of_answers(prompt: Any, answers: Sequence[Any]) -> str | None:
    """Return the form of a prompt and what replies to it, or None where they have none in common.

    Args:
        prompt: None where the answers are whole dialogues.
        answers: one at least, all of them given.
    """
    if any(answer is None for answer in answers):
        return None
    cells = [*answers, *([] if prompt is None else [prompt])]
    if any(is_messages(cell) for cell in cells):
        return "sharegpt" if any(is_sharegpt(cell) for cell in cells) else "messages"
    is_whole = all(is_transcript(answer) for answer in answers)
    if prompt is None:
        return "transcript" if is_whole else None
    if not isinstance(prompt, str):
        return None
    return "transcript" if is_whole or is_open_transcript(prompt) else "text"
