"""A pack lays every prompt once and scores exactly the response tokens."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from prefopt.data.packs.pack import group_of, pack, sequence_key
from prefopt.types import Preference, TokenizedGroup


def ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def group(**changes: object) -> TokenizedGroup:
    fields: dict[str, object] = {
        "prompts": (ids(1, 2, 3),),
        "responses": (ids(4, 5), ids(6)),
        "prompt_of": (0, 0),
        "preferences": (Preference(0, 1, weight=2.0, margin=0.5),),
        "row_id": 7,
        "origin": "a.jsonl:8",
    }
    return TokenizedGroup(**(fields | changes))


def test_shared_layout_by_hand() -> None:
    """Row: 1 2 3 | 4 5 | 6. The 3 at position 2 predicts both 4 and 6; 4 at position 3 predicts 5."""
    batch = pack([group()])
    assert batch.input_ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 3]
    assert batch.segments.starts == (0, 3, 5)
    assert batch.segments.parents == (-1, 0, 0)
    assert batch.score_at.tolist() == [2, 3, 2]
    assert batch.target_ids.tolist() == [4, 5, 6]
    assert batch.lengths == (2, 1)
    assert batch.pairs == ((0, 1),)
    assert batch.pair_weight.tolist() == [2.0]
    assert batch.pair_margin.tolist() == [0.5]
    assert batch.group_weight is not None and batch.group_weight.tolist() == [2.0]
    assert batch.prompt_embedding is None


def test_separate_layout_repeats_the_prompt() -> None:
    batch = pack([group()], share_prompts=False)
    assert batch.input_ids.tolist() == [1, 2, 3, 4, 5, 1, 2, 3, 6]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert batch.segments.parents == (-1, 0, -1, 2)
    assert batch.score_at.tolist() == [2, 3, 7]
    assert batch.target_ids.tolist() == [4, 5, 6]


def test_second_group_is_offset() -> None:
    batch = pack([group(), group(row_id=9)])
    assert batch.score_at.tolist() == [2, 3, 2, 8, 9, 8]
    assert batch.pairs == ((0, 1), (2, 3))
    assert batch.groups == (0, 2, 4)
    assert batch.segments.parents == (-1, 0, 0, -1, 3, 3)


def test_several_prompts_in_a_group_each_keep_their_own_responses() -> None:
    batch = pack([group(prompts=(ids(1, 2), ids(9)), prompt_of=(0, 1))])
    assert batch.input_ids.tolist() == [1, 2, 4, 5, 9, 6]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 0, 1]
    assert batch.score_at.tolist() == [1, 2, 4]


def test_ghosts_weigh_nothing() -> None:
    assert pack([group()], is_ghost=True).pair_weight.tolist() == [0.0]


def test_keys_name_prompt_and_response() -> None:
    """Moving a token from prompt to response changes the key; the row it came from does not."""
    keys = pack([group(), group(row_id=9)]).keys
    assert keys[0] == keys[2] != keys[1]
    assert sequence_key(ids(1, 2), ids(3)) != sequence_key(ids(1), ids(2, 3))


def test_scores_and_labels_follow_their_responses() -> None:
    batch = pack([group(scores=(0.9, 0.1), labels=(True, False)), group()])
    assert batch.scores is not None
    torch.testing.assert_close(batch.scores[:2], torch.tensor([0.9, 0.1]))
    assert batch.scores[2:].isnan().all()
    assert batch.labels is None  # one group has none, so no label stands for it


def test_tokens_of_weight_zero_are_read_and_not_scored() -> None:
    """Of the answer 4 5 6 7 the weights 0 2 0 1 leave 5, predicted from 4, and 7, from 6; the other is whole."""
    weights = (np.array([0, 2, 0, 1], np.float32), np.ones(2, np.float32))
    masked = replace(group_of([1, 2, 3], [[4, 5, 6, 7], [8, 9]]), token_weights=weights)
    batch = pack([masked])
    assert batch.input_ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert batch.target_ids.tolist() == [5, 7, 8, 9]
    assert batch.score_at.tolist() == [3, 5, 2, 7]
    assert batch.lengths == (2, 2)
    assert batch.token_weights is not None and batch.token_weights.tolist() == [2.0, 1.0, 1.0, 1.0]
    plain = pack([group_of([1, 2, 3], [[4, 5, 6, 7], [8, 9]])])
    assert plain.token_weights is None
    assert batch.keys[0] != plain.keys[0], "a cache must not take one for the other"
    assert batch.keys[1] == plain.keys[1]


def test_a_group_without_weights_counts_all_of_its_tokens() -> None:
    """Beside one with weights every one of its tokens weighs 1."""
    weights = (np.array([0, 0.5], np.float32), np.ones(1, np.float32))
    first = replace(group_of([1], [[4, 5], [6]]), token_weights=weights)
    batch = pack([first, group_of([1], [[7, 8, 9], [6]])])
    assert batch.lengths == (1, 1, 3, 1)
    assert batch.token_weights is not None
    assert batch.token_weights.tolist() == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_a_single_answer_has_no_preference_unless_one_is_given() -> None:
    assert group_of([1], [[2]]).preferences == ()
    assert pack([group_of([1], [[2]])]).pairs == ()
    assert pack([group_of([1], [[2], [3], [4]])]).pairs == ((0, 1),)


@pytest.mark.parametrize("preference", [(0, 1), (0, 0), (-1, 0)])
def test_a_preference_for_what_is_not_there_is_refused(preference: tuple[int, int]) -> None:
    with pytest.raises(
        ValueError, match=rf"group_of: row 3 prefers response {preference[0]} to {preference[1]}"
    ):
        group_of([1], [[2]], [preference], row_id=3)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: group_of([1.5, 2.0], [[4], [5]]), r"row 0 holds \[1\.5, 2\.0\]\. Give token ids"),
        (lambda: group_of([1], [[4], [-100, 5]]), r"row 0 holds \[-100, 5\]\. Give token ids"),
        (lambda: group_of([[1]], [[4], [5]]), r"row 0 holds \[\[1\]\]\."),
        (lambda: group_of([1], [[True], [5]]), r"row 0 holds \[true\]\."),
        (lambda: group_of([1], [[4], [5]], scores=[1.0]), "row 0 has 2 responses but 1 scores"),
        (lambda: group_of([1], [[4], [5]], [(0, -1)]), "row 0 prefers response 0 to -1, but has 2"),
        (
            lambda: group_of([1], [[4], [5]], labels=[0.7, 0.2]),
            r"row 0 has the label 0\.7\. Give true or false",
        ),
    ],
)
def test_a_group_is_made_of_token_ids_and_what_belongs_to_them(build, said) -> None:  # type: ignore[no-untyped-def]
    """1.5 was cut to 1, and a label of 0.2 was a wanted answer."""
    with pytest.raises(ValueError, match=f"^group_of: {said}"):
        build()
