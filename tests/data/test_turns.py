"""Weights of turns reach exactly the tokens of what those turns say."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from prefopt.data.raw import RowError
from prefopt.data.tokenize import Rendered, Renderer, Tokenizer, Tokens
from prefopt.data.turns import Span, token_weights
from prefopt.data.values import messages
from prefopt.types import Comparison

KINDS = ["byte_level", "sentencepiece", "metaspace", "bytes"]
QUESTION = [{"role": "user", "content": "what is the capital of France?"}]


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def comparison(*answers: list[dict[str, Any]]) -> Comparison:
    return Comparison(QUESTION, answers, (), row_id=0, origin="f.jsonl:1")


def tokens_of(tokenizer: Any, row: Comparison, turns: Any = "all", windowed: bool = False) -> Tokens:
    (rendered,) = Renderer(tokenizer, turns=turns).render([row])
    assert isinstance(rendered, Rendered), rendered
    (tokens,) = Tokenizer(tokenizer, windowed).tokenize([rendered])
    assert isinstance(tokens, Tokens)
    return tokens


def parts(tokenizer: Any, tokens: Tokens, answer: int = 0) -> list[tuple[str, float]]:
    """Return runs of tokens of one weight, as text."""
    assert tokens.weights is not None
    ids, weights = tokens.answers[answer], tokens.weights[answer]
    assert weights.dtype == np.float32 and len(weights) == len(ids)
    cuts = [0, *(np.flatnonzero(np.diff(weights)) + 1).tolist(), len(ids)]
    return [(tokenizer.decode(ids[low:high]), float(weights[low])) for low, high in pairwise(cuts)]


TALK = [
    turn("assistant", "the capital is Paris."),
    turn("user", "and of Italy?"),
    turn("assistant", "it is Rome."),
]


@pytest.mark.parametrize("windowed", [True, False])
def test_only_what_the_assistant_says_counts(windowed: bool, make_tokenizer: Any) -> None:
    """The user's turn and both headers weigh nothing; what closes an assistant's turn is its own."""
    tokenizer = make_tokenizer("byte_level")
    tokens = tokens_of(tokenizer, comparison(TALK), "assistant", windowed)
    assert parts(tokenizer, tokens) == [
        ("the capital is Paris.<|im_end|>\n", 1.0),
        ("<|im_start|>user\nand of Italy?<|im_end|>\n<|im_start|>assistant\n", 0.0),
        ("it is Rome.<|im_end|>\n", 1.0),
    ]


def test_without_weights_all_of_an_answer_counts(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer("byte_level")
    assert tokens_of(tokenizer, comparison(TALK)).weights is None
    lone = comparison([turn("assistant", "Paris.")], [turn("assistant", "Rome.")])
    assert tokens_of(tokenizer, lone, "assistant").weights is None


def test_turns_say_what_they_count(make_tokenizer: Any) -> None:
    """One weight in a row is enough for turns without one to count 1 (assistant) or 0 (others)."""
    tokenizer = make_tokenizer("byte_level")
    first = [{**TALK[0], "weight": 0.0}, *TALK[1:]]
    second = [TALK[0], {**TALK[1], "weight": 0.5}, {**TALK[2], "weight": 2.0}]
    tokens = tokens_of(tokenizer, comparison(first, second, TALK))
    assert [weight for _, weight in parts(tokenizer, tokens, 0)] == [0.0, 1.0]
    assert parts(tokenizer, tokens, 0)[1][0] == "it is Rome.<|im_end|>\n"
    assert parts(tokenizer, tokens, 1) == [
        ("the capital is Paris.<|im_end|>\n", 1.0),
        ("<|im_start|>user\nand of Italy?<|im_end|>\n", 0.5),
        ("<|im_start|>assistant\n", 0.0),
        ("it is Rome.<|im_end|>\n", 2.0),
    ]
    assert [weight for _, weight in parts(tokenizer, tokens, 2)] == [1.0, 0.0, 1.0]


def test_tool_turns_are_other_turns(make_tokenizer: Any) -> None:
    """Between a call and the reply to it stands what the tool said, which the model does not write."""
    tokenizer = make_tokenizer("byte_level")
    talk = [turn("assistant", "let me see"), turn("tool", "42"), turn("assistant", "it is 42")]
    tokens = tokens_of(tokenizer, comparison(talk), "assistant")
    assert [weight for _, weight in parts(tokenizer, tokens)] == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("kind", KINDS)
def test_weights_leave_the_ids_alone(kind: str, make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer(kind, adds_bos=True)
    weighted = tokens_of(tokenizer, comparison(TALK, TALK[:1]), "assistant")
    plain = tokens_of(tokenizer, comparison(TALK, TALK[:1]))
    assert np.array_equal(weighted.prompt, plain.prompt)
    for one, other in zip(weighted.answers, plain.answers, strict=True):
        assert np.array_equal(one, other)
    assert weighted.weights is not None
    assert 0 < weighted.weights[0].sum() < len(weighted.answers[0])
    assert weighted.weights[1].all()


def test_a_template_that_rewrites_earlier_turns_is_named(make_tokenizer: Any) -> None:
    """Where a first turn is printed otherwise once a second follows, its text has no fixed place."""
    tokenizer = make_tokenizer("byte_level")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' }}"
        "{{ m['content'] if loop.last or m['role'] == 'user' else '...' }}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    (found,) = Renderer(tokenizer, turns="assistant").render([comparison(TALK)])
    assert isinstance(found, RowError)
    assert found.column == "answer 1"
    assert "weights of turns have no place" in found.why


def test_a_token_belongs_to_the_turn_of_its_last_character() -> None:
    """Spans [2, 5) and [5, 7) behind a prompt of 10 characters; a token cut off the prompt goes with the first."""
    spans = [Span(2, 5, 3.0), Span(5, 7, 0.5)]
    offsets = [(8, 10), (10, 12), (10, 13), (13, 15), (14, 16), (15, 15), (16, 17), (17, 19)]
    assert token_weights(spans, offsets, 10).tolist() == [3.0, 3.0, 3.0, 3.0, 0.5, 0.5, 0.5, 0.0]


@pytest.mark.parametrize(
    ("more", "weight"),
    [({"weight": 0}, 0.0), ({"weight": 0.5}, 0.5), ({"train": False}, 0.0), ({"train": True}, 1.0)],
)
def test_both_words_for_it_are_read(more: dict[str, Any], weight: float) -> None:
    (found,) = messages([turn("assistant", "a", **more)], "chosen")
    assert found == {"role": "assistant", "content": "a", "weight": weight}


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"weight": -1}, "must not be negative, found -1"),
        ({"weight": True}, "must be a number"),
        ({"weight": "much"}, "must be a number"),
        ({"train": 0}, "must be true or false, found 0"),
        ({"train": True, "weight": 1}, "says what 'weight' says too"),
    ],
)
def test_a_wrong_weight_makes_a_bad_row(more: dict[str, Any], why: str) -> None:
    with pytest.raises(RowError, match=why) as caught:
        messages([turn("assistant", "a", **more)], "chosen")
    assert caught.value.column == f"chosen.0.{'train' if 'train' in more else 'weight'}"
