"""Steps built ahead on a thread are those built one by one, and the thread ends with its reader."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import fields

import pytest
import torch
import toy

from prefopt.data.packs.steps import PlannedSteps, Reader
from prefopt.errors import DataError
from prefopt.types import PackedBatch, Step, TokenizedGroup


def same(left: Step, right: Step) -> bool:
    """Tell whether two steps hold the same packs, tensor by tensor."""
    pairs = zip(left.packs, right.packs, strict=True)
    return (left.index, left.epoch, left.totals) == (right.index, right.epoch, right.totals) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for one, other in pairs
        for a, b in ((getattr(one, f.name), getattr(other, f.name)) for f in fields(PackedBatch))
    )


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefopt-pack")]


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_steps_come_in_order_and_are_those_built_directly(ahead: int) -> None:
    data = toy.table(20)
    plan = toy.plan(data, budget=60, per_step=4)
    found = list(PlannedSteps(plan, data).stream(2, 9, ahead=ahead))
    assert [step.index for step in found] == list(range(2, 9))
    assert all(same(step, PlannedSteps(plan, data).build(step.index)) for step in found)
    assert threads() == []


class Watched:
    """Hand out groups, remember which, and fail at one of them."""

    def __init__(self, count: int, broken: int | None = None) -> None:
        self.groups, self.broken = toy.groups(count), broken
        self.seen: list[int] = []
        self.hold = threading.Event()
        self.hold.set()

    def __getitem__(self, index: int) -> TokenizedGroup:
        assert self.hold.wait(10)
        self.seen.append(index)
        if index == self.broken:
            raise DataError(f"rows.jsonl:{index + 1}: the file has changed. Prepare it again.")
        return self.groups[index]


def test_the_next_steps_are_built_while_one_is_in_use() -> None:
    """With two ahead, taking the first of five steps of 2 groups leads to 3 * 2 groups read, and no more."""
    data, plan = Watched(10), toy.plan(toy.table(10), per_step=2)
    steps = PlannedSteps(plan, data).stream(0, 5)
    next(steps)
    deadline = threading.Event()
    for _ in range(200):
        if len(data.seen) == 6:
            break
        deadline.wait(0.01)
    deadline.wait(0.05)
    assert len(data.seen) == 6
    steps.close()
    assert threads() == []


def test_what_fails_on_the_thread_is_raised_in_its_turn() -> None:
    """The step before the broken row is still handed out; then the row's own message comes."""
    plan = toy.plan(toy.table(10), per_step=2)
    broken = int(plan.groups(1)[0])
    steps = PlannedSteps(plan, Watched(10, broken)).stream(0, 5)
    assert next(steps).index == 0
    with pytest.raises(DataError, match=rf"rows.jsonl:{broken + 1}: the file has changed"):
        next(steps)
    assert threads() == []


def test_closing_early_builds_nothing_more() -> None:
    """Of the two steps that wait, the one not yet begun is dropped."""
    data, plan = Watched(10), toy.plan(toy.table(10), per_step=2)
    steps = PlannedSteps(plan, data).stream(0, 5)
    next(steps)
    data.hold.clear()
    before = len(data.seen)
    closing = threading.Thread(target=steps.close)
    closing.start()
    data.hold.set()
    closing.join(10)
    assert not closing.is_alive() and threads() == []
    assert len(data.seen) <= before + 4


def test_nothing_is_built_for_an_empty_range() -> None:
    assert list(PlannedSteps(toy.plan(toy.table(4)), toy.table(4)).stream(3, 3)) == []


@pytest.mark.parametrize(("kind", "pins"), [("cuda", True), ("cpu", False)])
def test_packs_for_a_gpu_are_pinned_on_the_thread(
    kind: str, pins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread makes the rank's own GPU current first, or it would open a context on the first one."""
    calls: list[tuple[str, str]] = []

    def note(what: str) -> Callable[..., object]:
        return lambda value: calls.append((what, threading.current_thread().name[:12])) or value

    monkeypatch.setattr(PackedBatch, "pin_memory", note("pin"))
    monkeypatch.setattr(torch.cuda, "set_device", note("device"))
    data = toy.table(6)
    device = torch.device(kind, 1) if kind == "cuda" else torch.device(kind)
    steps = list(PlannedSteps(toy.plan(data, per_step=2), data).stream(0, 3, Reader(device=device)))
    wanted = [("device", "prefopt-pack"), *[("pin", "prefopt-pack")] * sum(len(s.packs) for s in steps)]
    assert calls == (wanted if pins else [])
