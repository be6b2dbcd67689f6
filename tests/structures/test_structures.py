"""A pack's log-probs become the units of a loss: which responses, in what order, with what weight."""

from __future__ import annotations

from dataclasses import fields
from typing import get_args

import numpy as np
import pytest
import torch
import toy

from prefopt.data.packs.pack import pack
from prefopt.data.tokens.table import GroupTable
from prefopt.errors import RecipeError
from prefopt.recipe import Eval
from prefopt.structures import BY_VALUES, STRUCTURES, Structure, rows_for
from prefopt.structures.labelled import LABELLED
from prefopt.structures.lists import LISTS
from prefopt.structures.pairs import PAIRS
from prefopt.structures.responses import RESPONSES
from prefopt.types import (
    INPUTS,
    Comparison,
    LabelledLogps,
    ListLogps,
    PackedBatch,
    PairLogps,
    Preference,
    SeqLogps,
    Totals,
)

A, B = "answer", "gold"
ROWS = toy.gold_groups()
"""Two rows of three and two answers with a gold text each, in awkward places."""


def logps(batch: PackedBatch) -> SeqLogps:
    """Give every token of response s the log-prob -s, so that a response is known by its mean."""
    tokens = np.repeat(-np.arange(len(batch.lengths), dtype=np.float64), batch.lengths)
    return SeqLogps(torch.from_numpy(tokens), batch.lengths)


def which(answers: SeqLogps) -> list[int]:
    return [round(-value) for value in answers.mean.tolist()]


def test_pairs_take_the_gold_text_of_their_row() -> None:
    batch = pack(ROWS)
    found = PAIRS.arrange(batch, logps(batch), roles=("gold",))
    assert isinstance(found, PairLogps)
    assert (which(found.chosen), which(found.rejected)) == ([0, 0, 6], [2, 3, 5])
    assert which(found.others["gold"]) == [1, 1, 4]
    assert found.detach().others.keys() == {"gold"}


def test_lists_are_the_answers_of_each_row_and_nothing_else() -> None:
    batch = pack(ROWS)
    found = LISTS.arrange(batch, logps(batch))
    assert isinstance(found, ListLogps)
    assert which(found.answers) == [0, 2, 3, 5, 6] and found.group_sizes == (3, 2)


def test_labelled_answers_by_labels_keep_mismatched_answers_apart() -> None:
    groups = [
        toy.group(1, [1, 2, 3], [A, A, "kl"], labels=(True, False, False)),
        toy.group(2, [4, 5], [A, "kl"], labels=(False, False)),
    ]
    batch = pack(groups)
    found = LABELLED.arrange(batch, logps(batch), roles=("kl",))
    assert isinstance(found, LabelledLogps)
    assert which(found.answers) == [0, 1, 3] and found.is_desirable.tolist() == [True, False, False]
    assert which(found.others["kl"]) == [2, 4]
    assert [LABELLED.origin(batch, unit) for unit in range(3)] == ["f:1", "f:1", "f:2"]


def test_labelled_answers_of_pairs_without_labels_are_chosen_or_rejected() -> None:
    batch = pack(ROWS)
    found = LABELLED.arrange(batch, logps(batch))
    assert isinstance(found, LabelledLogps)
    assert which(found.answers) == [0, 2, 3, 5, 6]
    assert found.is_desirable.tolist() == [True, False, False, False, True]


@pytest.mark.parametrize(
    ("preferences", "what"),
    [((), "neither"), ((Preference(0, 1), Preference(1, 2)), "both")],
)
def test_an_answer_that_nobody_labels_is_refused(preferences: tuple[Preference, ...], what: str) -> None:
    batch = pack([toy.group(4, [1, 2, 3], [A, A, A], preferences=preferences)])
    with pytest.raises(RecipeError, match=rf"^f:4: .* an answer is {what}\. Give it a label"):
        LABELLED.arrange(batch, logps(batch))


def test_single_answers_leave_other_roles_out() -> None:
    batch = pack(ROWS)
    found = RESPONSES.arrange(batch, logps(batch))
    assert isinstance(found, SeqLogps)
    assert which(found) == [0, 2, 3, 5, 6]
    assert [RESPONSES.origin(batch, unit) for unit in (2, 3)] == ["f:1", "f:2"]


def test_a_role_that_is_not_there_is_refused() -> None:
    batch = pack(ROWS)
    with pytest.raises(RecipeError, match=r"^f:1: the loss needs 'kl', but the data has no kl responses"):
        PAIRS.arrange(batch, logps(batch), roles=("kl",))
    lacking = pack([ROWS[0], toy.group(3, [1, 2], [A, A], preferences=(Preference(0, 1),))])
    with pytest.raises(RecipeError, match=r"^f:3: the row has no gold, but others have one"):
        PAIRS.arrange(lacking, logps(lacking), roles=("gold",))


def test_units_are_pairs_answers_or_groups() -> None:
    totals = Totals(pairs=3, responses=7, groups=2, tokens=99, chosen_tokens=12)
    counts = {name: structure.units(totals) for name, structure in STRUCTURES.items()}
    by_hand = {"pairs": 3, "responses": 7, "labelled": 7, "lists": 2}
    assert counts == by_hand, "say here which of the totals counts the units of each structure"


def test_a_list_has_the_weight_of_its_row_and_none_in_a_ghost() -> None:
    like = torch.zeros(2, dtype=torch.float64)
    assert LISTS.weigh(pack(ROWS), like).tolist() == [2.0, 0.5]
    assert LISTS.weigh(pack(ROWS, is_ghost=True), like).tolist() == [0.0, 0.0]
    plain = pack([toy.group(1, [1, 2], [A, A])] * 2)
    assert LISTS.weigh(plain, like).tolist() == [1.0, 1.0]
    assert LABELLED.weigh(pack(ROWS), torch.zeros(5)).tolist() == [1.0] * 5
    assert LABELLED.weigh(pack(ROWS, is_ghost=True), torch.zeros(5)).tolist() == [0.0] * 5


def test_a_table_counts_what_is_arranged() -> None:
    """What a plan divides by is the number of units that the packs bring."""
    sizes = GroupTable.from_groups(ROWS).sizes(share_prompts=True)
    batch = pack(ROWS)
    assert sizes.pairs.sum() == len(PAIRS.arrange(batch, logps(batch)))
    assert sizes.responses.sum() == len(LABELLED.arrange(batch, logps(batch)))
    assert sizes.tokens.sum() == batch.num_tokens


def test_every_structure_stands_in_all_tables_with_words_of_its_own() -> None:
    """A structure that takes another's words, type or name would be mistaken for it."""
    for words in ("name", "values", "learns_from"):
        told = [getattr(structure, words) for structure in STRUCTURES.values()]
        assert len(set(told)) == len(told), f"two structures have the same {words}: {told}"
    assert list(BY_VALUES.values()) == list(STRUCTURES.values())
    assert all(rows_for(name) is structure.rows for name, structure in STRUCTURES.items())


def test_every_input_fits_some_structure_and_every_structure_names_known_ones() -> None:
    """An input that fits none could never be asked for: put its name into the `inputs` of those it fits."""
    named = {name for structure in STRUCTURES.values() for name in structure.inputs}
    assert named == set(INPUTS)


def test_a_structure_counts_what_totals_and_tables_hold() -> None:
    for structure in STRUCTURES.values():
        assert structure.counted_in in {field.name for field in fields(Totals)}
        assert len(getattr(GroupTable.from_groups(ROWS).sizes(True), structure.counted_in)) == len(ROWS)


def test_a_structure_is_evaluated_by_metrics_that_a_recipe_can_name() -> None:
    known = get_args(Eval.model_fields["metric"].annotation)
    for structure in STRUCTURES.values():
        assert structure.eval_metrics and set(structure.eval_metrics) <= set(known), structure.name


def test_a_structure_cannot_forget_a_part() -> None:
    parts = {field.name: getattr(PAIRS, field.name) for field in fields(Structure)}
    for name in parts:
        with pytest.raises(TypeError, match=f"missing 1 required keyword-only argument: '{name}'"):
            Structure(**{key: value for key, value in parts.items() if key != name})


def test_where_nothing_is_learned_every_answer_is_kept() -> None:
    row = Comparison("q", ("a", "b"), (Preference(0, 1, weight=2.0),), 0, "f:1", scores=(1.0, 1.0))
    assert rows_for(None).keep(row, "error").row is row
