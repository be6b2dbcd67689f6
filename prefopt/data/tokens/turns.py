"""What counts of an answer with several turns: weights of turns, placed on its text and then on its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from prefopt.data.rows.raw_rows import RowError
from prefopt.types import Comparison

Turns = Literal["all", "assistant"]
Weights = npt.NDArray[np.float32]


class Span(NamedTuple):
    """A stretch of an answer's text, in characters, and the weight of its tokens."""

    start: int
    end: int
    weight: float


def needs_spans(row: Comparison, turns: Turns) -> bool:
    """Whether parts of an answer count differently: its turns say so, or only the assistant's count."""
    if isinstance(row.prompt, str):
        return False
    says_so = any("weight" in turn for answer in row.answers for turn in answer if isinstance(turn, Mapping))
    return says_so or (turns == "assistant" and any(len(answer) > 1 for answer in row.answers))


def beginnings(answer: Sequence[Any]) -> list[tuple[Sequence[Any], bool]]:
    """Return what is to be printed of an answer to find its turns: its beginnings, some with a further turn opened."""
    counts = range(1, len(answer))
    opened = [count for count in counts if answer[count]["role"] == "assistant"]
    return [(answer[:count], False) for count in counts] + [(answer[:count], True) for count in opened]


def spans_of(
    row: Comparison, prompt: str, wholes: Sequence[str], begun: Iterator[str | RowError]
) -> tuple[tuple[Span, ...], ...] | RowError:
    """Find out where in each answer's text its turns lie, and what each of them counts.

    A turn counts what its ``weight`` says, else 1 if it is an assistant's and 0 if not. What the template
    prints before an assistant's turn belongs to none.

    Args:
        row: messages.
        prompt: its prompt as the template prints it.
        wholes: prompt and answer as the template prints them, for every answer.
        begun: prompt and ``beginnings`` of every answer as the template prints them, one after the other.
    """
    found = []
    for index, (answer, whole) in enumerate(zip(row.answers, wholes, strict=True)):
        texts = list(islice(begun, len(beginnings(answer))))
        spans = _turn_spans([dict(turn) for turn in answer], len(prompt), whole, texts)  # type: ignore[arg-type]
        if spans is None:
            why = "the chat template prints its turns otherwise when later ones are missing"
            return RowError(f"answer {index + 1}", f"{why}, so that weights of turns have no place")
        found.append(spans)
    return tuple(found)


def _turn_spans(
    answer: Sequence[dict[str, Any]], start: int, whole: str, texts: Sequence[str | RowError]
) -> tuple[Span, ...] | None:
    for text in texts:
        if isinstance(text, RowError) or not whole.startswith(text):
            return None
    ends = [start, *(len(str(text)) for text in texts[: len(answer) - 1]), len(whole)]
    heads = iter([len(str(text)) for text in texts[len(answer) - 1 :]])
    spans = []
    for at, turn in enumerate(answer):
        is_own = turn["role"] == "assistant"
        low = next(heads) if is_own and at > 0 else ends[at]
        weight = float(turn.get("weight", 1.0 if is_own else 0.0))
        spans.append(Span(low - start, ends[at + 1] - start, weight))
    return tuple(spans)


def token_weights(spans: Sequence[Span], offsets: Sequence[tuple[int, int]], start: int) -> Weights:
    """Return the weight of every token of an answer.

    A token belongs to the span of its last character; outside of all spans it weighs nothing.

    Args:
        spans: of the answer's text, in order, apart from each other.
        offsets: first character and the one after the last of each token, in prompt and answer together.
        start: where the answer begins there; a token before it belongs to the first span.
    """
    last = np.array([max(high - 1, low) for low, high in offsets], dtype=np.int64) - start
    last = np.maximum(last, spans[0].start)
    at = np.searchsorted([span.start for span in spans], last, side="right") - 1
    ends = np.array([span.end for span in spans])
    weights = np.array([span.weight for span in spans], dtype=np.float32)
    return np.where((at >= 0) & (last < ends[at]), weights[at], np.float32(0.0))
