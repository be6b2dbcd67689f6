"""Steps of losses that read all units at once: how often packs run, what is carried, what guards them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any

import coupled
import pytest
import torch
import toy
from torch import Tensor

from prefopt.data.packs.steps import PlannedSteps, Reader
from prefopt.engine import Engine
from prefopt.errors import ModelError, NonFiniteError, RecipeError
from prefopt.losses import dpo
from prefopt.optim import OptimSettings
from prefopt.policy import Policy
from prefopt.reference import Reference
from prefopt.trainer import Trainer
from prefopt.types import Carried, LossOutput, PackedBatch, PairLogps, SeqLogps, WholeStep


def whole_dpo(policy: Annotated[PairLogps, WholeStep()], reference: PairLogps) -> LossOutput:
    """Be DPO, asked for all pairs of the step."""
    return dpo(policy, reference)


def trainer_of(
    loss: Any = whole_dpo,
    *,
    steps: int = 4,
    budget: int = 60,
    policy: Policy | None = None,
    **changes: Any,
) -> Trainer:
    data = toy.table(24)
    options: dict[str, Any] = {
        "num_steps": steps,
        "reference": toy.reference(seed=0),
        "optim": OptimSettings(lr=1e-2, warmup=0),
        "engine": Engine(cpu=True),
    }
    return Trainer(
        policy or toy.policy(), loss, PlannedSteps(toy.plan(data, budget=budget), data), **(options | changes)
    )


class Counting(Policy):
    """Count how often each pack is scored, with and without a gradient."""

    calls: list[tuple[int, bool]]

    def __call__(self, batch: PackedBatch, **options: Any) -> SeqLogps:
        self.calls.append((batch.num_tokens, torch.is_grad_enabled()))
        return super().__call__(batch, **options)


def test_a_loss_that_needs_no_whole_step_pays_the_same_with_one() -> None:
    """Four steps and an evaluation of DPO marked as a loss over the whole step, in several packs each."""
    marked, plain = trainer_of(), trainer_of(dpo)
    for one, other in zip(marked, plain, strict=True):
        assert one.means() == pytest.approx(other.means(), rel=1e-9)
        assert one.grad_norm.item() == pytest.approx(other.grad_norm.item(), rel=1e-9)
    held_out = toy.table(10, seed=5)
    values = [
        each.evaluate(PlannedSteps(toy.plan(held_out, budget=60, per_step=4), held_out))
        for each in (marked, plain)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-9)
    assert marked.identity is not None and marked.identity < 1e-12


@pytest.mark.parametrize("budget", [60, 10_000])
def test_all_packs_but_the_last_are_scored_twice(budget: int) -> None:
    policy = Counting(toy.llama())
    policy.calls = []
    trainer = trainer_of(budget=budget, policy=policy, reference=toy.reference(seed=1))
    step = trainer.steps.build(0, trainer.reader)
    trainer.accumulator.run(step)
    sizes = [batch.num_tokens for batch in step.packs]
    assert len(sizes) == (1 if budget == 10_000 else 3)
    first = [(size, at == len(sizes) - 1) for at, size in enumerate(sizes)]
    assert policy.calls == first + [(size, True) for size in sizes[:-1]]


def test_the_layout_follows_the_plan() -> None:
    """Two ranks' packs, read at the places of the layout, are the answers in the order of the plan."""
    data = toy.table(9)
    plan = toy.plan(data, budget=60, per_step=9, world=2)
    held = [
        batch
        for rank in range(2)
        for batch in PlannedSteps(plan, data).build(0, Reader(rank=rank)).packs
        if not batch.is_ghost
    ]
    found = torch.cat([batch.target_ids for batch in held])
    wanted = torch.cat([torch.from_numpy(r).long() for g in plan.groups(0) for r in data[int(g)].responses])
    starts = []
    for rank in range(2):
        layout = PlannedSteps(plan, data).build(0, Reader(rank, 2, wants_layout=True)).layout
        assert layout is not None
        assert torch.equal(found[layout.places], wanted)
        assert layout.batch.row_ids == tuple(plan.groups(0))
        starts.append(layout.start)
    first = PlannedSteps(plan, data).build(0, Reader(rank=0)).packs
    assert starts == [0, sum(sum(b.lengths) for b in first if not b.is_ghost)]


def carrying(spoiled: int) -> Any:
    """Build a loss that counts its steps and is not finite in one of them."""
    given: list[float | None] = []

    def counting(
        policy: Annotated[PairLogps, WholeStep()],
        reference: PairLogps,
        *,
        seen: Annotated[Tensor | None, Carried()] = None,
    ) -> LossOutput:
        given.append(None if seen is None else seen.item())
        output = dpo(policy, reference)
        factor = math.nan if len(given) == spoiled else 1.0
        count = torch.zeros(()) if seen is None else seen
        return replace(output, loss=output.loss * factor, carried={"seen": count + 1})

    return counting, given


def test_what_is_carried_advances_only_with_the_weights() -> None:
    """The second of four steps is skipped, so the third is handed what the first left."""
    loss, given = carrying(spoiled=2)
    trainer = trainer_of(loss, on_nonfinite="skip")
    carried = [trainer.objective.carried["seen"].item() for _ in trainer]
    assert given == [None, 1, 1, 2]
    assert carried == [1, 1, 2, 3]


def test_evaluation_reads_what_is_carried_and_leaves_it() -> None:
    """Three evaluation steps are each handed what the two training steps left."""
    loss, given = carrying(spoiled=0)
    trainer = trainer_of(loss, steps=2)
    assert len(list(trainer)) == 2
    trainer.evaluate(PlannedSteps(toy.plan(toy.table(24)), toy.table(24)))
    assert given == [None, 1, 2, 2, 2]
    assert trainer.objective.carried["seen"].item() == 2


def test_out_of_memory_halves_the_pack_and_changes_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first try fails in the second pass, the next in the first pass of a half."""
    data = coupled.rows(24)
    options = {"budget": 120, "per_step": 8, "steps": 3}
    engine = Engine(cpu=True)
    usual = [result.means() for result in coupled.trainer_of("beta_dynamic", data, engine, **options)]
    trainer = coupled.trainer_of("beta_dynamic", data, engine, **options)
    real, calls = trainer.scorer.again, []

    def fails(batch: PackedBatch, rows: Any = None) -> SeqLogps:
        calls.append(batch)
        if len(calls) in (3, 5):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return real(batch, rows)

    monkeypatch.setattr(trainer.scorer, "again", fails)
    split = [result.means() for result in trainer]
    assert len(calls[2].row_ids) > 1 and len(calls[4].row_ids) > 1
    for found, wanted in zip(split, usual, strict=True):
        assert found == pytest.approx(wanted, rel=1e-9)  # another order of summation


def test_another_reference_than_claimed_is_refused_before_the_first_step() -> None:
    wrong = toy.reference(seed=1)
    wrong.is_start = True
    trainer = trainer_of(reference=wrong)
    before = {name: p.clone() for name, p in trainer.parameters.items()}
    with pytest.raises(
        ModelError, match=r"toy.jsonl:\d+: before .* log-prob of an answer is -\d.* under the policy"
    ):
        next(iter(trainer))
    assert all(torch.equal(before[name], p) for name, p in trainer.parameters.items())


def test_rounding_does_not_trip_the_first_check() -> None:
    """alpha_margin divides by the spread of margins, at the start a rounding; its log-probs are compared instead."""
    data = coupled.rows(24)
    trainer = coupled.trainer_of("alpha_margin", data, Engine(cpu=True), per_step=8, reference=Nudged(1e-11))
    next(iter(trainer))
    assert trainer.identity is not None and 1e-13 < trainer.identity < 1e-11


class Nudged(Reference):
    """The start of training, but for a little noise, or a lot of it in the pack of one row."""

    is_start = True

    def __init__(self, size: float, row: int | None = None) -> None:
        self.policy, self.size, self.row = toy.policy(), size, row
        self.generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def __call__(self, batch: PackedBatch, **options: Any) -> SeqLogps:
        found = self.policy(batch, **options)
        if self.row is not None and self.row not in batch.row_ids:
            return found
        noise = torch.rand(found.tokens.shape, generator=self.generator, dtype=found.tokens.dtype)
        return replace(found, tokens=found.tokens + self.size * noise)


def test_rows_with_log_probs_that_are_not_finite_are_named() -> None:
    """Every loss of the step is NaN, yet only row 3 is to blame."""
    reference = Nudged(math.inf, row=3)
    reference.is_start = False
    trainer = trainer_of(reference=reference, steps=3)
    with pytest.raises(
        NonFiniteError, match=r"^step \d: log-probs of toy.jsonl:4 are not finite under the reference;"
    ):
        list(trainer)


def test_rows_without_embeddings_are_refused_in_one_line() -> None:
    data = toy.groups(24)
    trainer = coupled.trainer_of("relative", data, Engine(cpu=True))
    with pytest.raises(RecipeError, match=r"relative.weighting: .* set weighting: diagonal"):
        next(iter(trainer))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
