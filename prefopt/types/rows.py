"""One data row: as canonical text, and as the token ids of a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Message = Mapping[str, Any]
Text = str | Sequence[Message]
IntArray = npt.NDArray[np.int32]


class Preference(NamedTuple):
    """One preferred pair inside a group: indices of its responses, weight, margin and certainty."""

    chosen: int
    rejected: int
    weight: float = 1.0
    margin: float = 0.0
    soft_label: float | None = None  # probability that the chosen answer is the better one, where known


class Extra(NamedTuple):
    """A text of a row that is scored but is none of its answers: what it is for, and what it replies to."""

    role: str  # of ROLES, not "answer"
    text: Text
    prompt: Text | None = None  # None: that of the first answer


@dataclass(frozen=True, slots=True)
class Comparison:
    """One data row in canonical text form: a prompt, its answers, and which is preferred.

    ``prompt`` and every answer are strings (plain text) or message lists, all of one kind.
    An answer as messages holds only the turns after the prompt. ``labels`` says desirable or not
    per answer, ``scores`` holds a number per answer; both are None where the data has none.
    Where the answers reply to different prompts, ``own_prompts`` has one for each and ``prompt`` is
    the first of them.
    """

    prompt: Text
    answers: tuple[Text, ...]
    preferences: tuple[Preference, ...]
    row_id: int
    origin: str  # file:line, or dataset[split]:row
    scores: tuple[float, ...] | None = None
    labels: tuple[bool, ...] | None = None
    tools: Sequence[Any] | None = None
    own_prompts: tuple[Text, ...] | None = None
    extras: tuple[Extra, ...] = ()
    prompt_embedding: npt.NDArray[np.float32] | None = None  # [E]
    findings: tuple[str, ...] = ()  # what the report counts of the row, by its names there

    def __post_init__(self) -> None:
        for name in ("scores", "labels", "own_prompts"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.answers):
                raise ValueError(
                    f"{self.origin}: {len(values)} {name} for {len(self.answers)} answers. "
                    f"Give one per answer."
                )


@dataclass(frozen=True, slots=True)
class TokenizedGroup:
    """Token ids of one row: its prompts (nearly always one), its responses and their preferences.

    The planner's unit: a group is never split, and each prompt is stored once for all its responses.
    """

    prompts: tuple[IntArray, ...]
    responses: tuple[IntArray, ...]
    prompt_of: tuple[int, ...]  # [K], index into prompts
    preferences: tuple[Preference, ...]
    row_id: int
    origin: str
    roles: tuple[str, ...] | None = None  # [K], None: all "answer"
    scores: tuple[float, ...] | None = None  # [K], NaN for other roles than "answer"
    labels: tuple[bool, ...] | None = None  # [K], False for other roles than "answer"
    token_weights: tuple[npt.NDArray[np.float32], ...] | None = None  # [K] of [length], 0: not scored
    prompt_embedding: npt.NDArray[np.float32] | None = None  # [E]

    def __post_init__(self) -> None:
        num_responses = len(self.responses)
        for name in ("prompt_of", "roles", "scores", "labels", "token_weights"):
            values = getattr(self, name)
            if values is not None and len(values) != num_responses:
                raise ValueError(f"{self.origin}: {len(values)} {name} for {num_responses} responses.")
