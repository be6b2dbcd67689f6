"""What is not finite never moves a weight, and the row that it came from is named."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection
from dataclasses import replace

import pytest
import torch
import toy
from lanes import slow_but

from prefopt.assemble.loss import build_loss
from prefopt.data.packs.steps import PlannedSteps
from prefopt.engine import Engine
from prefopt.errors import NonFiniteError, RecipeError
from prefopt.optim import OptimSettings
from prefopt.policy import Policy
from prefopt.reference import Reference, SeveralReferences
from prefopt.trainer import Trainer
from prefopt.types import PackedBatch, SeqLogps

LOSSES = {
    "dpo": {"name": "dpo"},
    "ipo": {"name": "ipo"},
    "hinge": {"name": "hinge"},
    "whole step": {"name": "bco_pair"},
}


class Spoilt(Reference):
    """Says something else of one answer of one row."""

    is_start = False

    def __init__(self, value: float, row: int, answer: int) -> None:
        self.value, self.row, self.answer = value, row, answer
        self.real = toy.reference(1)

    def __call__(self, batch: PackedBatch, *, stats: Collection[str] = ()) -> SeqLogps:
        found = self.real(batch, stats=stats)
        return spoilt(found, batch, self.row, self.answer, self.value)


def spoilt(found: SeqLogps, batch: PackedBatch, row: int, answer: int, value: float) -> SeqLogps:
    if row not in batch.row_ids:
        return found
    at = batch.groups[batch.row_ids.index(row)] + answer
    first = sum(batch.lengths[:at])
    mask = torch.zeros(found.tokens.shape, dtype=torch.bool)
    mask[first] = True
    return replace(found, tokens=found.tokens.masked_fill(mask, value))


def trainer_of(
    reference: Reference | None, loss: dict[str, object] | None = None, **changes: object
) -> Trainer:
    data = toy.table(24)
    return Trainer(
        toy.policy(),
        build_loss(loss or {"name": "dpo"}),
        PlannedSteps(toy.plan(data, budget=120), data),
        num_steps=6,
        reference=reference,
        optim=OptimSettings(lr=1e-2),
        engine=Engine(cpu=True),
        **changes,  # type: ignore[arg-type]
    )


CASES = {
    f"{loss}, {value}, answer {answer}": (loss, value, answer)
    for loss in LOSSES
    for value in (-math.inf, math.inf, math.nan)
    for answer in (0, 1)
}


@pytest.mark.parametrize(
    ("loss", "value", "answer"), slow_but(["dpo, -inf, answer 0", "hinge, inf, answer 1"], CASES)
)
def test_a_reference_that_holds_an_answer_for_impossible_is_named_by_its_row(
    loss: str, value: float, answer: int
) -> None:
    """To some losses such a pair is won or lost already, and they charge nothing for it."""
    reference = Spoilt(value, row=13, answer=answer)
    trainer = trainer_of(reference, LOSSES[loss])
    with pytest.raises(
        NonFiniteError, match=r"log-probs of toy.jsonl:14 are not finite under the reference; "
    ):
        list(trainer)
    assert trainer.done < 3 and all(torch.isfinite(p).all() for p in trainer.parameters.values())


def test_one_of_several_references_is_read_as_well() -> None:
    loss = {"name": "dpo", "with": [{"name": "multi_ref"}]}
    several = SeveralReferences([toy.reference(2), Spoilt(-math.inf, row=13, answer=0)])
    with pytest.raises(
        NonFiniteError, match=r"log-probs of toy.jsonl:14 are not finite under the reference; "
    ):
        list(trainer_of(several, loss))


def test_a_policy_that_holds_a_rejected_answer_for_impossible_is_named_by_its_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The pair would be won for ever, and nothing would be paid for it."""
    real = Policy.__call__

    def scored(self: Policy, batch: PackedBatch, *, stats: Collection[str] = ()) -> SeqLogps:
        found = real(self, batch, stats=stats)
        return spoilt(found, batch, 13, 1, -math.inf) if self is trainer.policy else found

    trainer = trainer_of(toy.reference(1))
    monkeypatch.setattr(Policy, "__call__", scored)
    with pytest.raises(NonFiniteError, match=r"log-probs of toy.jsonl:14 are not finite under the policy; "):
        list(trainer)


def test_an_evaluation_shows_that_it_was_not_finite() -> None:
    data = toy.table(24)
    held_out = PlannedSteps(toy.plan(data, budget=120), data)
    assert math.isfinite(trainer_of(toy.reference(1)).evaluate(held_out)["loss"])
    assert math.isnan(trainer_of(Spoilt(-math.inf, row=13, answer=0)).evaluate(held_out)["loss"])


def test_finite_log_probs_add_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and weights are those without the check, to the last bit."""
    checked = trainer_of(toy.reference(1))
    found = [result.sums.values["loss"] for result in checked]
    monkeypatch.setattr("prefopt.trainer.objective._zero_if_finite", lambda *_: torch.tensor(0.0))
    bare = trainer_of(toy.reference(1))
    assert torch.equal(torch.stack(found), torch.stack([result.sums.values["loss"] for result in bare]))
    assert all(torch.equal(p, bare.parameters[name]) for name, p in checked.parameters.items())


class Flaky(Reference):
    """Says NaN in steps of the given numbers; every step is one pack."""

    is_start = False

    def __init__(self, bad: Collection[int]) -> None:
        self.bad, self.calls, self.real = bad, 0, toy.reference(1)

    def __call__(self, batch: PackedBatch, *, stats: Collection[str] = ()) -> SeqLogps:
        self.calls += 1
        found = self.real(batch, stats=stats)
        return replace(found, tokens=found.tokens * math.nan) if self.calls - 1 in self.bad else found


def flaky(bad: Collection[int], **changes: object) -> Trainer:
    data = toy.table(24)
    trainer = trainer_of(Flaky(bad), on_nonfinite="skip", **changes)
    trainer.feed(PlannedSteps(toy.plan(data), data))
    return trainer


def test_skipping_gives_up_after_so_many_steps_in_a_row(caplog: pytest.LogCaptureFixture) -> None:
    trainer = flaky({1, 2, 3}, max_skips=3)
    with caplog.at_level(logging.WARNING), pytest.raises(NonFiniteError) as caught:
        list(trainer)
    assert trainer.done == 3 and trainer.skips == 3
    assert str(caught.value).startswith("step 4: log-probs of toy.jsonl:")
    assert "number 3 in a row that was left out, as many as train.max_skips allows" in str(caught.value)
    said = [record.getMessage() for record in caplog.records]
    assert [line[:7] for line in said] == ["step 2:", "step 3:"] and all(
        line.endswith("It is left out.") for line in said
    )


def test_a_good_step_begins_the_count_anew() -> None:
    trainer = flaky({0, 1, 3, 4}, max_skips=3)
    assert [result.skipped for result in trainer] == [True, True, False, True, True, False]
    assert trainer.skips == 0


def test_no_number_of_skips_below_one() -> None:
    with pytest.raises(RecipeError, match=r"max_skips: 0 steps cannot be left out"):
        trainer_of(toy.reference(1), max_skips=0)
