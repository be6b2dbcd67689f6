"""The tensors that a loss's signature names follow the units of the loss."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import toy
from torch import Tensor

from prefopt.data.packs.pack import pack
from prefopt.errors import RecipeError
from prefopt.structures import STRUCTURES, Structure
from prefopt.structures.lists import LISTS
from prefopt.structures.pairs import PAIRS
from prefopt.trainer.inputs import inputs_of, wanted_inputs
from prefopt.types import PackedBatch, Preference, Totals

TOTALS = Totals(pairs=3, responses=7, groups=2, tokens=99, chosen_tokens=12)


def input_of(name: str, structure: Structure, batch: PackedBatch) -> Tensor:
    return inputs_of([name], structure, batch, TOTALS)[name]


def test_inputs_of_pairs_follow_their_rows() -> None:
    batch = pack(toy.gold_groups())
    assert input_of("chosen_score", PAIRS, batch).tolist() == [5.0, 5.0, 4.0]
    assert input_of("rejected_score", PAIRS, batch).tolist() == [1.0, 2.0, 3.0]
    assert input_of("prompt_embedding", PAIRS, batch).tolist() == [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    bare = pack([toy.group(1, [1, 2], ["answer", "answer"], preferences=(Preference(0, 1),))])
    with pytest.raises(RecipeError, match="the data has no 'prompt_embedding' column"):
        input_of("prompt_embedding", PAIRS, bare)


def test_inputs_of_lists_follow_their_answers_and_rows() -> None:
    batch = pack(toy.gold_groups())
    assert input_of("answer_score", LISTS, batch).tolist() == [5.0, 1.0, 2.0, 3.0, 4.0]
    assert input_of("prompt_embedding", LISTS, batch).tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_every_input_that_fits_a_structure_is_supplied() -> None:
    batch = replace(pack(toy.gold_groups()), pair_soft_label=torch.ones(3))
    for structure in STRUCTURES.values():
        found = inputs_of(structure.inputs, structure, batch, TOTALS)
        assert tuple(found) == structure.inputs and all(map(torch.is_tensor, found.values()))


def test_inputs_a_loss_can_do_without_are_left_out_where_the_data_lacks_them() -> None:
    """Bare rows have neither scores nor embeddings; margins and lengths are always there."""
    inputs = {"answer_score": False, "prompt_embedding": False, "pair_margin": False, "chosen_score": True}
    bare = pack(toy.groups(2))
    assert wanted_inputs(inputs, bare) == ["pair_margin", "chosen_score"]
    assert wanted_inputs(inputs, pack(toy.scored_groups(2))) == [
        "answer_score",
        "pair_margin",
        "chosen_score",
    ]
    embedded = replace(bare, prompt_embedding=torch.ones(2, 3))
    assert wanted_inputs(inputs, embedded) == ["prompt_embedding", "pair_margin", "chosen_score"]
