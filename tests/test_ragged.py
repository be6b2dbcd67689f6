"""Lengths that know themselves on a device, and the gathers made from them."""

from __future__ import annotations

import copy

import pytest
import torch
import toy

from prefopt.data.packs.pack import pack
from prefopt.ragged import Lengths, on_device
from prefopt.types import PackedBatch, SeqLogps

CPU = torch.device("cpu")
META = torch.device("meta")


def test_lengths_are_a_tuple_and_go_to_a_device_once() -> None:
    lengths = Lengths([3, 1, 2])
    assert lengths == (3, 1, 2) and isinstance(lengths, tuple)
    assert lengths.on(CPU).tolist() == [3, 1, 2]
    assert lengths.on(CPU) is lengths.on(CPU)
    assert lengths.on(META).device == META and lengths.on(CPU).tolist() == [3, 1, 2]


def test_a_take_says_where_the_tokens_of_whole_runs_lie() -> None:
    """Runs of 3, 1 and 2 tokens start at 0, 3 and 4; runs 2, 0, 2 are tokens 4 5, 0 1 2, 4 5."""
    lengths = Lengths([3, 1, 2])
    take = lengths.take([2, 0, 2], CPU)
    assert take.lengths == (2, 3, 2)
    assert take.runs.tolist() == [2, 0, 2]
    assert take.tokens.tolist() == [4, 5, 0, 1, 2, 4, 5]
    assert lengths.take((2, 0, 2), CPU) is take
    nothing = lengths.take([], CPU)
    assert nothing.lengths == () and nothing.tokens.tolist() == [] and nothing.tokens.dtype == torch.int64


def test_what_was_made_moves_along() -> None:
    """A pack's gathers are those that its batch on the device starts with; the pack keeps its own."""
    batch = pack(toy.groups(3))
    assert isinstance(batch.lengths, Lengths)
    chosen = batch.lengths.take([pair[0] for pair in batch.pairs], CPU)
    moved = batch.to(META)
    assert isinstance(moved.lengths, Lengths) and moved.lengths == batch.lengths
    there = moved.lengths.take([pair[0] for pair in batch.pairs], META)
    assert there.tokens.device == there.runs.device == there.lengths.on(META).device == META
    assert batch.lengths.take([pair[0] for pair in batch.pairs], CPU) is chosen
    assert all(getattr(moved, name).device == META for name in ("input_ids", "score_at", "pair_weight"))


def test_a_batch_is_pinned_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor of a batch lands in pinned memory: its own and those of its lengths."""
    pinned: list[int] = []

    def pin(self: torch.Tensor) -> torch.Tensor:
        pinned.append(self.data_ptr())
        return self.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    batch = pack(toy.groups(2))
    twin = batch.pin_memory()
    own = [
        v for name in PackedBatch.__dataclass_fields__ if isinstance(v := getattr(batch, name), torch.Tensor)
    ]
    # counts of the responses, and of both sides their counts, runs and tokens
    assert len(pinned) == len(own) + 1 + 2 * 3
    assert torch.equal(twin.input_ids, batch.input_ids) and twin.lengths == batch.lengths


def test_plain_tuples_serve_as_lengths() -> None:
    """Tokens 1 2 3 | 4 | 5 6: sums 6, 4, 11; means 2, 4, 5.5; responses 2 and 0 sum to 11 and 6."""
    logps = SeqLogps(tokens=torch.arange(1.0, 7.0), lengths=(3, 1, 2), stats={"entropy": torch.arange(6.0)})
    assert logps.total.tolist() == [6.0, 4.0, 11.0] and logps.mean.tolist() == [2.0, 4.0, 5.5]
    assert logps.length.dtype == torch.float32 and logps.length.tolist() == [3.0, 1.0, 2.0]
    assert logps.sequence_of.tolist() == [0, 0, 0, 1, 2, 2]
    taken = logps.with_total(torch.tensor([1.0, 2.0, 3.0])).take([2, 0])
    assert taken.tokens.tolist() == [5.0, 6.0, 1.0, 2.0, 3.0] and taken.total.tolist() == [3.0, 1.0]
    assert taken.stats["entropy"].tolist() == [4.0, 5.0, 0.0, 1.0, 2.0]
    assert logps.take(range(3)) is logps


def test_lengths_survive_a_copy() -> None:
    lengths = Lengths([3, 1])
    lengths.take([1], CPU)
    twin = copy.deepcopy(lengths)
    assert twin == lengths and twin.on(CPU).tolist() == [3, 1]


def test_numbers_reach_a_device_in_the_dtype_asked_for() -> None:
    assert on_device([1, 2], "cpu").dtype == torch.int64
    assert on_device([], CPU, torch.int64).dtype == torch.int64
    assert on_device(torch.ones(2, dtype=torch.float64), CPU, torch.float32).dtype == torch.float32


def test_lengths_first_asked_for_in_inference_mode_serve_training() -> None:
    """A reference is scored in inference mode with the very lengths that the policy is then trained with."""
    lengths = Lengths((2, 1))
    with torch.inference_mode():
        scored = SeqLogps(-torch.ones(3), lengths)
        assert scored.total.tolist() == [-2.0, -1.0] and scored.take([1, 0]).total.tolist() == [-1.0, -2.0]
        moved = lengths.apply(torch.clone)
    for held in (lengths, moved):
        tokens = (-torch.ones(3)).requires_grad_()
        answers = SeqLogps(tokens, held)
        (answers.total.square() + answers.take([1, 0]).total.square()).sum().backward()
        assert tokens.grad is not None and tokens.grad.tolist() == [-8.0, -8.0, -4.0]


@pytest.mark.parametrize("index", [-2, 3])
def test_a_run_that_is_not_there_is_not_taken(index: int) -> None:
    """-2 took the tokens of the last of equal runs."""
    with pytest.raises(ValueError, match=rf"^take: there is no run {index} among 3\. Count from 0\.$"):
        SeqLogps(-torch.ones(6), (2, 2, 2)).take([index])
