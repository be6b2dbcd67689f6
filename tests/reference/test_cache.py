"""Cached log-probs are what the reference said, whatever rows or packs ask for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import toy

from prefopt.data.packs.pack import pack
from prefopt.errors import CorruptError, NonFiniteError, RecipeError
from prefopt.reference import CachedReference, fill_cache
from prefopt.reference.cache import LogpCache
from prefopt.types import PackedBatch, SeqLogps


def filled(stats: tuple[str, ...] = ()) -> LogpCache:
    reference = toy.reference(seed=1, dtype=torch.float32)
    cache = LogpCache(stats)
    rows = toy.groups(12)
    fill_cache(cache, reference, [pack(rows[:5]), pack(rows[5:])])
    return cache


def test_cached_equals_live_in_other_packs() -> None:
    """float32: another pack sums in another order, so 1e-5."""
    rows = toy.groups(12)
    cached = CachedReference(filled(("entropy",)), is_start=False)
    live = toy.reference(seed=1, dtype=torch.float32)
    batch = pack([rows[11], rows[2], rows[7]])
    got, expected = cached(batch, stats=("entropy",)), live(batch, stats=("entropy",))
    assert got.lengths == expected.lengths
    torch.testing.assert_close(got.tokens, expected.tokens, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.stats["entropy"], expected.stats["entropy"], atol=1e-5, rtol=1e-5)
    assert not got.tokens.requires_grad


def test_values_lie_where_the_batch_does() -> None:
    cached = CachedReference(filled(), is_start=False)
    assert cached(pack(toy.groups(2)).to("meta")).tokens.device.type == "meta"


def test_a_statistic_that_was_not_kept_is_named() -> None:
    cached = CachedReference(filled(("entropy",)), is_start=False)
    with pytest.raises(RecipeError, match=r"reference: the cache was filled without log_sum_p2"):
        cached(pack(toy.groups(2)), stats=("entropy", "log_sum_p2"))


def test_an_unknown_answer_is_an_error_that_names_the_row() -> None:
    stranger = toy.groups(3, seed=9)
    with pytest.raises(
        CorruptError, match=r"toy.jsonl:1: the reference log-prob of answer 0 .* is not in the cache"
    ):
        filled().get(pack(stranger))


def test_flat_form_carries_every_entry() -> None:
    cache = filled(("entropy",))
    copy = LogpCache(("entropy",))
    copy.add_flat(*cache.flat())
    batch = pack(toy.groups(12))
    assert len(copy) == len(cache) == 24
    assert torch.equal(copy.get(batch).tokens, cache.get(batch).tokens)
    assert torch.equal(copy.get(batch).stats["entropy"], cache.get(batch).stats["entropy"])


def test_known_answers_are_not_scored_again() -> None:
    cache = filled()

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("scored again")

    fill_cache(cache, refuse, [pack(toy.groups(12))])  # type: ignore[arg-type]


def spoilt(stat: str | None, value: float) -> Callable[..., SeqLogps]:
    """Score, but for the second token of answer 1 of row 7, and count the batches."""

    def score(batch: PackedBatch, stats: tuple[str, ...] = ()) -> SeqLogps:
        calls.append(batch)
        found = toy.reference(seed=1, dtype=torch.float32)(batch, stats=stats)
        if 7 not in batch.row_ids:
            return found
        at = sum(batch.lengths[: batch.groups[batch.row_ids.index(7)] + 1]) + 1
        values = (found.tokens if stat is None else found.stats[stat]).clone()
        values[at] = value
        return replace(found, tokens=values) if stat is None else replace(found, stats={stat: values})

    calls: list[PackedBatch] = []
    score.calls = calls  # type: ignore[attr-defined]
    return score


@pytest.mark.parametrize("value", [-math.inf, math.inf, math.nan])
@pytest.mark.parametrize(("stat", "said"), [(None, "log-prob"), ("entropy", "entropy")])
def test_a_value_that_is_not_finite_is_named_by_its_row(value: float, stat: str | None, said: str) -> None:
    cache, score = LogpCache(("entropy",)), spoilt(stat, value)
    rows = toy.groups(12)
    length = len(rows[7].responses[1])
    assert length > 1
    with pytest.raises(NonFiniteError) as caught:
        fill_cache(cache, score, [pack(rows[at : at + 3]) for at in (0, 3, 6, 9)])  # type: ignore[arg-type]
    assert str(caught.value).startswith(
        f"toy.jsonl:8: the reference gives token 2 of {length} of answer 1 the {said} {value}. "
    )
    assert len(score.calls) == 3 and len(cache) == 12  # type: ignore[attr-defined]  # nothing of its pack is kept


def test_ranks_that_score_together_all_score_to_the_end() -> None:
    cache, score = LogpCache(), spoilt(None, math.nan)
    packs = [pack(toy.groups(12)[at : at + 3]) for at in (0, 3, 6, 9)]
    with pytest.raises(NonFiniteError, match=r"toy.jsonl:8"):
        fill_cache(cache, score, packs, skip_known=False)  # type: ignore[arg-type]
    assert len(score.calls) == 4  # type: ignore[attr-defined]
