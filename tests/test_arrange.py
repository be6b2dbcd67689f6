"""Tensors that a loss's signature names, taken from a pack."""

from __future__ import annotations

from dataclasses import replace

import coupled
import pytest
import torch
import toy

from prefopt.arrange import inputs_of
from prefopt.data.pack import pack
from prefopt.errors import RecipeError
from prefopt.types import Totals

TOTALS = Totals(pairs=6, responses=9, groups=3, tokens=90, chosen_tokens=12)


def test_every_pair_is_given_the_embedding_of_its_own_prompt() -> None:
    """Three groups of two pairs each."""
    groups = coupled.rows(3, answers=3)
    found = inputs_of({"prompt_embedding": True}, "pairs", pack(groups), TOTALS)["prompt_embedding"]
    wanted = [torch.from_numpy(groups[g].prompt_embedding) for g in (0, 0, 1, 1, 2, 2)]
    assert torch.equal(found, torch.stack(wanted))


def test_embeddings_that_not_all_rows_have_count_as_none() -> None:
    groups = coupled.rows(3)
    groups[1] = replace(groups[1], prompt_embedding=None)
    assert pack(groups).prompt_embedding is None


@pytest.mark.parametrize("name", ["prompt_embedding", "soft_label", "answer_score", "chosen_score"])
def test_what_the_data_lacks_is_left_out_or_refused(name: str) -> None:
    batch = pack(toy.groups(2))
    assert inputs_of({name: False}, "pairs", batch, TOTALS) == {}
    with pytest.raises(RecipeError, match=f"toy.jsonl:1: the loss needs '{name}', but the data has no"):
        inputs_of({name: True}, "pairs", batch, TOTALS)
