"""A pack's log-probs become the units of a loss: which responses, in what order, with what weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import nan

import numpy as np
import pytest
import torch
import toy
from torch import Tensor

from prefopt.data.packs.pack import pack
from prefopt.data.tokens.table import GroupTable
from prefopt.errors import RecipeError
from prefopt.trainer.arrange import arrange, inputs_of, num_units, origin_of_unit, unit_weights, wanted_inputs
from prefopt.types import (
    LabelledLogps,
    ListLogps,
    PackedBatch,
    PairLogps,
    Preference,
    SeqLogps,
    TokenizedGroup,
    Totals,
)

TOTALS = Totals(pairs=3, responses=7, groups=2, tokens=99, chosen_tokens=12)


def group(row: int, lengths: Sequence[int], roles: Sequence[str], **fields: object) -> TokenizedGroup:
    given: dict[str, object] = {
        "prompts": (np.array([9], np.int32),),
        "responses": tuple(np.full(length, length, np.int32) for length in lengths),
        "prompt_of": (0,) * len(lengths),
        "preferences": (),
        "row_id": row,
        "origin": f"f:{row}",
        "roles": tuple(roles),
    }
    return TokenizedGroup(**(given | fields))  # type: ignore[arg-type]


A, B = "answer", "gold"
PAIRS = [
    group(
        1,
        [2, 3, 1, 4],
        [A, B, A, A],
        preferences=(Preference(0, 2, 2.0), Preference(0, 3, 2.0)),
        scores=(5.0, nan, 1.0, 2.0),
        prompt_embedding=np.array([1.0, 0.0], np.float32),
    ),
    group(
        2,
        [5, 6, 7],
        [B, A, A],
        preferences=(Preference(2, 1, 0.5),),
        scores=(nan, 3.0, 4.0),
        prompt_embedding=np.array([0.0, 1.0], np.float32),
    ),
]
"""Two rows of three and two answers with a gold text each, in awkward places."""


def logps(batch: PackedBatch) -> SeqLogps:
    """Give every token of response s the log-prob -s, so that a response is known by its mean."""
    tokens = np.repeat(-np.arange(len(batch.lengths), dtype=np.float64), batch.lengths)
    return SeqLogps(torch.from_numpy(tokens), batch.lengths)


def which(answers: SeqLogps) -> list[int]:
    return [round(-value) for value in answers.mean.tolist()]


def input_of(name: str, structure: str, batch: PackedBatch) -> Tensor:
    return inputs_of([name], structure, batch, TOTALS)[name]


def test_pairs_take_the_gold_text_of_their_row() -> None:
    batch = pack(PAIRS)
    found = arrange("pairs", batch, logps(batch), roles=("gold",))
    assert isinstance(found, PairLogps)
    assert (which(found.chosen), which(found.rejected)) == ([0, 0, 6], [2, 3, 5])
    assert which(found.others["gold"]) == [1, 1, 4]
    assert found.detach().others.keys() == {"gold"}


def test_lists_are_the_answers_of_each_row_and_nothing_else() -> None:
    batch = pack(PAIRS)
    found = arrange("lists", batch, logps(batch))
    assert isinstance(found, ListLogps)
    assert which(found.answers) == [0, 2, 3, 5, 6] and found.group_sizes == (3, 2)
    assert input_of("answer_score", "lists", batch).tolist() == [5.0, 1.0, 2.0, 3.0, 4.0]
    assert input_of("prompt_embedding", "lists", batch).tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_sides_by_labels_keep_mismatched_answers_apart() -> None:
    groups = [
        group(1, [1, 2, 3], [A, A, "kl"], labels=(True, False, False)),
        group(2, [4, 5], [A, "kl"], labels=(False, False)),
    ]
    batch = pack(groups)
    found = arrange("sides", batch, logps(batch), roles=("kl",))
    assert isinstance(found, LabelledLogps)
    assert which(found.answers) == [0, 1, 3] and found.is_desirable.tolist() == [True, False, False]
    assert which(found.others["kl"]) == [2, 4]
    assert [origin_of_unit("sides", batch, unit) for unit in range(3)] == ["f:1", "f:1", "f:2"]


def test_sides_of_pairs_without_labels_are_chosen_or_rejected() -> None:
    batch = pack(PAIRS)
    found = arrange("sides", batch, logps(batch))
    assert isinstance(found, LabelledLogps)
    assert which(found.answers) == [0, 2, 3, 5, 6]
    assert found.is_desirable.tolist() == [True, False, False, False, True]


@pytest.mark.parametrize(
    ("preferences", "what"),
    [((), "neither"), ((Preference(0, 1), Preference(1, 2)), "both")],
)
def test_an_answer_that_is_on_no_side_is_refused(preferences: tuple[Preference, ...], what: str) -> None:
    batch = pack([group(4, [1, 2, 3], [A, A, A], preferences=preferences)])
    with pytest.raises(RecipeError, match=rf"^f:4: .* an answer is {what}\. Give it a label"):
        arrange("sides", batch, logps(batch))


def test_single_answers_leave_other_roles_out() -> None:
    batch = pack(PAIRS)
    found = arrange("responses", batch, logps(batch))
    assert isinstance(found, SeqLogps)
    assert which(found) == [0, 2, 3, 5, 6]
    assert [origin_of_unit("responses", batch, unit) for unit in (2, 3)] == ["f:1", "f:2"]


def test_a_role_that_is_not_there_is_refused() -> None:
    batch = pack(PAIRS)
    with pytest.raises(RecipeError, match=r"^f:1: the loss needs 'kl', but the data has no kl responses"):
        arrange("pairs", batch, logps(batch), roles=("kl",))
    lacking = pack([PAIRS[0], group(3, [1, 2], [A, A], preferences=(Preference(0, 1),))])
    with pytest.raises(RecipeError, match=r"^f:3: the row has no gold, but others have one"):
        arrange("pairs", lacking, logps(lacking), roles=("gold",))


def test_units_are_pairs_answers_or_groups() -> None:
    counts = {s: num_units(s, TOTALS) for s in ("pairs", "responses", "sides", "lists")}
    assert counts == {"pairs": 3, "responses": 7, "sides": 7, "lists": 2}


def test_a_list_has_the_weight_of_its_row_and_none_in_a_ghost() -> None:
    like = torch.zeros(2, dtype=torch.float64)
    assert unit_weights("lists", pack(PAIRS), like).tolist() == [2.0, 0.5]
    assert unit_weights("lists", pack(PAIRS, is_ghost=True), like).tolist() == [0.0, 0.0]
    plain = pack([group(1, [1, 2], [A, A])] * 2)
    assert unit_weights("lists", plain, like).tolist() == [1.0, 1.0]
    assert unit_weights("sides", pack(PAIRS), torch.zeros(5)).tolist() == [1.0] * 5
    assert unit_weights("sides", pack(PAIRS, is_ghost=True), torch.zeros(5)).tolist() == [0.0] * 5


def test_inputs_of_pairs_follow_their_rows() -> None:
    batch = pack(PAIRS)
    assert input_of("chosen_score", "pairs", batch).tolist() == [5.0, 5.0, 4.0]
    assert input_of("rejected_score", "pairs", batch).tolist() == [1.0, 2.0, 3.0]
    assert input_of("prompt_embedding", "pairs", batch).tolist() == [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    bare = pack([group(1, [1, 2], [A, A], preferences=(Preference(0, 1),))])
    with pytest.raises(RecipeError, match="the data has no 'prompt_embedding' column"):
        input_of("prompt_embedding", "pairs", bare)


def test_a_table_counts_what_is_arranged() -> None:
    """What a plan divides by is the number of units that the packs bring."""
    sizes = GroupTable.from_groups(PAIRS).sizes(share_prompts=True)
    batch = pack(PAIRS)
    assert sizes.pairs.sum() == len(arrange("pairs", batch, logps(batch)))
    assert sizes.responses.sum() == len(arrange("sides", batch, logps(batch)))
    assert sizes.tokens.sum() == batch.num_tokens


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
