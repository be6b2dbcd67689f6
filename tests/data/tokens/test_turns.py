"""Weights of turns reach exactly the tokens of what those turns say."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefopt.data.packs.pack import group_of
from prefopt.data.prepare import prepare
from prefopt.data.rows.messages import messages
from prefopt.data.rows.mismatched import add_mismatched
from prefopt.data.rows.raw_rows import RowError
from prefopt.data.rows.source import Source
from prefopt.data.tokens.render import Rendered, Renderer
from prefopt.data.tokens.tokenize import Tokenizer, Tokens
from prefopt.data.tokens.turns import Span, token_weights
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


def rows_of(*answers: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> Source:
    rows = [{"prompt": QUESTION, "chosen": chosen, "rejected": rejected} for chosen, rejected in answers]
    return Source("memory", rows=rows)


SHORT = [turn("assistant", "Lyon.")]


def test_weights_go_into_the_table_row_by_row(make_tokenizer: Any) -> None:
    """The first row weighs its turns; the second says nothing, so all of it counts."""
    silent = [{**TALK[0], "train": False}, *TALK[1:]]
    tokenizer = make_tokenizer("byte_level")
    table = prepare([rows_of((silent, SHORT), (SHORT, TALK))], tokenizer).table
    first, second = table[0], table[1]
    assert first.token_weights is not None and second.token_weights is None
    assert first.token_weights[1].all()
    kept = first.responses[0][first.token_weights[0] > 0]
    assert tokenizer.decode(kept) == "it is Rome.<|im_end|>\n"


def test_a_setting_scores_assistant_turns_alone(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer("byte_level")
    table = prepare([rows_of((TALK, SHORT))], tokenizer, turns="assistant").table
    weights = table[0].token_weights
    assert weights is not None and 0 < weights[0].sum() < len(weights[0])
    assert prepare([rows_of((TALK, SHORT))], tokenizer).table.token_weights is None


def test_a_row_with_nothing_to_score_is_unused(make_tokenizer: Any) -> None:
    """No turn of the first row's chosen answer counts; of the second's nothing that counts is left by the cut."""
    none = [turn("assistant", "the capital is Paris.", weight=0)]
    late = [{**TALK[0], "weight": 0}, *TALK[1:]]
    tokenizer = make_tokenizer("byte_level")
    source = rows_of((none, SHORT), (late, SHORT), (SHORT, TALK))
    prompt = len(prepare([source], tokenizer).table[0].prompts[0])
    found = prepare([source], tokenizer, max_tokens=prompt + 12)
    assert [found.table.origin(i) for i in range(len(found.table))] == ["memory:3"]
    assert found.report.unused.origins == ["memory:1", "memory:2"]
    assert found.report.unused.count == 2


def test_the_cut_takes_weights_along(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer("byte_level")
    whole = prepare([rows_of((TALK, SHORT))], tokenizer, turns="assistant").table[0]
    room = len(whole.prompts[0]) + len(whole.responses[0]) - 3
    cut = prepare([rows_of((TALK, SHORT))], tokenizer, turns="assistant", max_tokens=room).table[0]
    assert whole.token_weights is not None and cut.token_weights is not None
    assert np.array_equal(cut.token_weights[0], whole.token_weights[0][:-3])


def test_the_cache_tells_settings_apart(make_tokenizer: Any, tmp_path: Path) -> None:
    """Another setting and another weight are other tables; the same ones are found again."""
    tokenizer = make_tokenizer("byte_level")
    found = []
    silent = [{**TALK[0], "weight": 0}, *TALK[1:]]
    for answer, turns in ((TALK, "all"), (TALK, "assistant"), (silent, "all"), (TALK, "assistant")):
        prepared = prepare([rows_of((answer, SHORT))], tokenizer, turns=turns, cache_dir=tmp_path)  # type: ignore[arg-type]
        found.append((prepared.report.from_cache, prepared.table.scored_lengths.tolist()))
    assert [is_cached for is_cached, _ in found] == [False, False, False, True]
    assert found[1][1] == found[3][1]
    assert len({str(lengths) for _, lengths in found}) == 3


def test_answers_to_other_prompts_are_scored_whole() -> None:
    """What another row's answer adds as drift has no weights of its own."""
    weights = (np.array([0.0, 1.0], np.float32),)
    first = replace(group_of([1], [[2, 3]], (), labels=[True]), token_weights=weights)
    second = group_of([4], [[5, 6, 7]], (), labels=[False])
    one, two = add_mismatched([first, second], None)
    assert one.token_weights is not None
    assert [part.tolist() for part in one.token_weights] == [[0.0, 1.0], [1.0, 1.0, 1.0]]
    assert two.token_weights is None
