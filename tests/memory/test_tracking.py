"""The tracker counts bytes that are alive, on tensors with and without memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from prefopt.memory.tracking import MemoryTracker, Moment, weightless


def test_bytes_are_counted_from_birth_to_death() -> None:
    """A [100] and b [50] in float32: 400, then 600; without a, c [10] makes 200 + 40."""
    known = torch.ones(1000)
    with MemoryTracker([known], "work") as tracker:
        a = torch.zeros(100)
        b = a[:50] + 1
        known.add_(1)
        a.view(10, 10)
        del a
        c = torch.zeros(10)
    assert tracker.moments == [Moment("work", 400, 0), Moment("work", 600, 0), Moment("work", 240, 0)]
    assert b.numel() + c.numel() == 60


def test_finished_gradients_are_told_apart() -> None:
    """The gradient of 25 numbers takes 100 bytes; it passes by until its parameter has it."""
    weight = nn.Parameter(torch.ones(25))
    with MemoryTracker([weight], "backward") as tracker:
        weight.register_post_accumulate_grad_hook(tracker.finish)
        (weight * 3).sum().backward()
        tracker.note("end")
    assert tracker.moments[-1].gradients == 100
    assert tracker.moments[-1].live <= 8  # a sum and the gradient of one


def test_bytes_without_a_tensor_are_counted_too() -> None:
    with MemoryTracker([], "work") as tracker:
        tracker.hold(30)
        tracker.add_gradients(7)
        tracker.note("work")
        tracker.hold(-30)
        tracker.note("work")
    assert tracker.moments == [Moment("work", 30, 7), Moment("work", 0, 7)]


def test_the_peak_is_that_of_torchs_own_tracker() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
    batch = torch.randn(32, 64)
    tracker = MemTracker()
    tracker.track_external(model, batch)
    with tracker:
        model(batch).square().mean().backward()
    theirs = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    model.zero_grad(set_to_none=True)
    known = [*model.parameters(), batch]
    with MemoryTracker(known, "step") as tracker:
        model(batch).square().mean().backward()
    ours = max(moment.live + moment.gradients for moment in tracker.moments) + sum(t.nbytes for t in known)
    assert ours == theirs


def test_tensors_without_memory_weigh_as_much() -> None:
    model = nn.Sequential(nn.Linear(30, 50), nn.ReLU(), nn.Linear(50, 7))
    counts = []
    for is_real in (True, False):
        with FakeTensorMode() if not is_real else torch.enable_grad():
            used = model if is_real else weightless(model)
            with MemoryTracker(used.parameters(), "step") as tracker:
                used(torch.ones(4, 30)).sum().backward()
        counts.append(tracker.moments)
        model.zero_grad(set_to_none=True)
    assert counts[0] == counts[1]


def test_a_copy_without_weights_keeps_ties_and_leaves_the_model_alone() -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    model[1].weight = model[0].weight
    model[1].weight.requires_grad_(False)
    before = model[0].weight.clone()
    with FakeTensorMode():
        copy = weightless(model)
        assert copy[0].weight is copy[1].weight  # type: ignore[index]
        assert not copy[1].weight.requires_grad  # type: ignore[index]
        copy(torch.zeros(2, dtype=torch.int64))
    assert torch.equal(model[0].weight, before)
    assert type(model[0].weight) is nn.Parameter


def test_a_condition_on_numbers_that_are_not_there_does_not_hold() -> None:
    with FakeTensorMode(), MemoryTracker([], "work"):
        positions = torch.arange(10)
        assert not positions.max() + 1 > 5
        assert int(positions.max()) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_groups_of_rows_multiply_without_numbers(dtype: torch.dtype) -> None:
    shapes = []
    for is_real in (True, False):
        with FakeTensorMode() if not is_real else torch.enable_grad(), MemoryTracker([], "work"):
            rows = torch.ones(16, 8, dtype=dtype, requires_grad=True)
            weight = torch.ones(2, 8, 16, dtype=dtype, requires_grad=True)
            ends = torch.ones(2, dtype=torch.int32) * 8
            out = nn.functional.grouped_mm(rows, weight, offs=ends)
            (out * out).sum().backward()
        shapes.append([(t.shape, t.dtype, t.stride()) for t in (out, rows.grad, weight.grad)])  # type: ignore[union-attr]
    assert shapes[0] == shapes[1]
