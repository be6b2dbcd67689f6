"""A table gives back the groups that went in, in memory, selected, joined and from disk."""

from __future__ import annotations

import errno
import math
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefopt.data.tokens.arrays import read_arrays, write_arrays
from prefopt.data.tokens.table import GroupTable
from prefopt.errors import CorruptError, DataError
from prefopt.types import Preference, TokenizedGroup


def ids(*values: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.array(values, dtype=np.int32)


PAIR = TokenizedGroup(
    prompts=(ids(1, 2, 3),),
    responses=(ids(4), ids(5, 6)),
    prompt_of=(0, 0),
    preferences=(Preference(0, 1, 2.0, 0.5),),
    row_id=7,
    origin="a.jsonl:1",
    scores=(1.5, -2.0),
    prompt_embedding=np.array([0.5, -1.0], np.float32),
)
TWO_PROMPTS = TokenizedGroup(
    prompts=(ids(1), ids(8, 9)),
    responses=(ids(4, 4), ids(5), ids(6, 6, 6)),
    prompt_of=(1, 0, 1),
    preferences=(Preference(2, 0), Preference(2, 1)),
    row_id=9,
    origin="é.jsonl:2",
    roles=("answer", "kl", "gold"),
    labels=(True, False, False),
    token_weights=(np.ones(2, np.float32), np.zeros(1, np.float32), np.array([1, 2, 3], np.float32)),
)
SINGLE = TokenizedGroup((ids(1),), (ids(2),), (0,), (), row_id=11, origin="b[train]:3")
GROUPS = [PAIR, TWO_PROMPTS, SINGLE]


def assert_same(left: TokenizedGroup, right: TokenizedGroup) -> None:
    for field in fields(TokenizedGroup):
        mine, other = getattr(left, field.name), getattr(right, field.name)
        if field.name in ("prompts", "responses", "token_weights") and mine is not None:
            assert len(mine) == len(other)
            assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(mine, other, strict=True))
        elif field.name in ("scores", "prompt_embedding") and mine is not None:
            np.testing.assert_array_equal(mine, other)  # NaN equals NaN
        else:
            assert mine == other, field.name


def test_groups_come_back_as_they_went_in() -> None:
    table = GroupTable.from_groups(GROUPS)
    assert len(table) == 3
    for index, group in enumerate(GROUPS):
        assert_same(table[index], group)
    assert_same(table[-1], SINGLE)
    with pytest.raises(IndexError, match="no group 3 among 3"):
        table[3]


def test_sizes_count_a_prompt_once_or_once_per_response() -> None:
    """TWO_PROMPTS: prompts 1 and 2, answers 2 (after 2), 1 (after 1), 3 (after 2).

    Shared 1 + 2 + 2 + 1 + 3 = 9; apart (2+2) + (1+1) + (2+3) = 11; longest 2 + 3 = 5; the chosen
    answer has 3 tokens and stands in two pairs, so 6. SINGLE has no pair, so its answer counts. Two of
    the responses of TWO_PROMPTS are no answers, and the one token of weight 0 is not scored.
    """
    table = GroupTable.from_groups(GROUPS)
    shared, apart = table.sizes(share_prompts=True), table.sizes(share_prompts=False)
    assert shared.tokens.tolist() == [6, 9, 2]
    assert apart.tokens.tolist() == [9, 11, 2]
    assert shared.pairs.tolist() == [1, 2, 0]
    assert shared.responses.tolist() == [2, 1, 1]
    assert shared.scored_tokens.tolist() == [3, 5, 1]
    assert shared.longest.tolist() == apart.longest.tolist() == [5, 5, 2]
    assert shared.chosen_tokens.tolist() == [1, 6, 1]
    assert shared.desirable.tolist() == [1, 1, 0]  # chosen, labelled, neither


def test_answers_alone_count_as_chosen_where_there_are_no_pairs() -> None:
    """The answer has 2 tokens; the 1 and 3 of the others are not trained on."""
    table = GroupTable.from_groups([replace(TWO_PROMPTS, preferences=())])
    assert table.sizes(share_prompts=True).chosen_tokens.tolist() == [2]


def test_scores_of_answers_survive_beside_responses_without_one() -> None:
    group = replace(TWO_PROMPTS, scores=(1.5, math.nan, math.nan))
    assert_same(GroupTable.from_groups([PAIR, group])[1], group)


def test_embeddings_of_different_lengths_are_refused() -> None:
    long = replace(SINGLE, prompt_embedding=np.zeros(3, np.float32))
    with pytest.raises(
        DataError, match=r"^b\[train\]:3: the prompt embedding has 3 numbers, .* a.jsonl:1 2\."
    ):
        GroupTable.from_groups([PAIR, long])


def test_selected_groups_keep_their_order_and_may_repeat() -> None:
    table = GroupTable.from_groups(GROUPS, source_of=[0, 1, 1], source_weights=(1.0, 2.0)).select(
        [2, 0, 1, 0]
    )
    for index, group in enumerate([SINGLE, PAIR, TWO_PROMPTS, PAIR]):
        assert_same(table[index], group)
    assert table.source_of.tolist() == [1, 0, 1, 0] and table.source_weights == (1.0, 2.0)


def test_empty_table_has_sizes_and_can_be_saved(tmp_path: Path) -> None:
    table = GroupTable.from_groups([])
    table.save(tmp_path / "t")
    for empty in (table, GroupTable.from_groups(GROUPS).select([]), GroupTable.load(tmp_path / "t")):
        assert len(empty) == 0
        assert all(len(values) == 0 for values in empty.sizes(share_prompts=True))


def test_joined_tables_keep_sources_apart() -> None:
    left = GroupTable.from_groups([PAIR, SINGLE], source_of=[0, 1], source_weights=(1.0, 0.5))
    table = GroupTable.concatenate([left, GroupTable.from_groups([TWO_PROMPTS], source_weights=(3.0,))])
    for index, group in enumerate([PAIR, SINGLE, TWO_PROMPTS]):
        assert_same(table[index], group)
    assert table.source_of.tolist() == [0, 1, 2] and table.source_weights == (1.0, 0.5, 3.0)


def test_saved_table_comes_back_with_what_was_stored_beside_it(tmp_path: Path) -> None:
    table = GroupTable.from_groups(GROUPS, source_weights=(2.0,))
    table.save(tmp_path / "t.safetensors", {"rows": [1, "é"]})
    back, extra = GroupTable.load_with_extra(tmp_path / "t.safetensors")
    for index, group in enumerate(GROUPS):
        assert_same(back[index], group)
    assert extra == {"rows": [1, "é"]} and back.source_weights == (2.0,)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["t.safetensors"]


def test_flipped_or_missing_bytes_are_found(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    GroupTable.from_groups(GROUPS).save(path)
    good = path.read_bytes()
    for position in range(0, len(good), 5):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        try:
            table = GroupTable.load(path)
        except CorruptError:
            continue
        # Blanks that pad the header are the only bytes without a meaning.
        assert good[position : position + 1] == b" "
        assert_same(table[1], TWO_PROMPTS)
    for size in range(0, len(good), 7):
        path.write_bytes(good[:size])
        with pytest.raises(CorruptError, match="Delete it"):
            GroupTable.load(path)


def test_table_of_another_format_is_refused(tmp_path: Path) -> None:
    write_arrays(tmp_path / "t", {"row_ids": np.zeros(1, np.int64)}, {"format": 0, "extra": {}})
    with pytest.raises(CorruptError, match="table format 0 is not"):
        GroupTable.load(tmp_path / "t")


def test_failed_write_leaves_neither_file_nor_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(TypeError):
        write_arrays(tmp_path / "t", {"x": np.zeros(1, np.int64)}, {"meta": object()})
    write_arrays(tmp_path / "t", {"x": np.arange(3)}, {})
    before = (tmp_path / "t").read_bytes()
    with pytest.raises(OSError, match="cannot be written"):
        write_arrays(tmp_path / "t", {"x": np.zeros(1, np.longdouble)}, {})
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_arrays(tmp_path / "t", {"x": np.zeros(3, np.int64)}, {})
    assert (tmp_path / "t").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    assert read_arrays(tmp_path / "t")[0]["x"].tolist() == [0, 1, 2]


def test_what_weighs_nothing_is_not_scored() -> None:
    """Chosen 1 of 2 tokens, rejected all of 3; laid down are all of them, whatever they weigh."""
    group = replace(
        PAIR,
        responses=(ids(4, 5), ids(5, 6, 7)),
        token_weights=(np.array([0, 2], np.float32), np.full(3, 0.5, np.float32)),
    )
    table = GroupTable.from_groups([group, SINGLE])
    sizes = table.sizes(share_prompts=True)
    assert table.scored_lengths.tolist() == [1, 3, 1]
    assert sizes.scored_tokens.tolist() == [4, 1]
    assert sizes.chosen_tokens.tolist() == [1, 1]
    assert sizes.tokens.tolist() == [8, 2]
