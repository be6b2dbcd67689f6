"""Lists, labelled answers, third texts and two prompts: sharing and splitting change nothing, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import nan
from typing import Annotated

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import toy
from torch import Tensor

from prefopt.assemble.loss import build_loss
from prefopt.data.packs.plan import Plan
from prefopt.data.packs.steps import PlannedSteps
from prefopt.data.rows.mismatched import add_mismatched
from prefopt.data.tokens.table import GroupTable
from prefopt.engine import Engine
from prefopt.losses import contract_of, dpo
from prefopt.trainer import Trainer
from prefopt.types import LabelledLogps, LossOutput, PairLogps, Range, Roles, TokenizedGroup


def on_labelled(
    policy: Annotated[LabelledLogps, Roles("kl")],
    reference: LabelledLogps,
    *,
    beta: Annotated[float, Range(gt=0)] = 0.1,
) -> LossOutput:
    """Pay -log sigmoid of the reward or of its opposite, for a test."""
    assert len(policy.others["kl"]) > 0
    reward = beta * (policy.answers.total - reference.answers.total)
    loss = -F.logsigmoid(torch.where(policy.is_desirable, reward, -reward))
    return LossOutput(loss, chosen_reward=reward.detach())


def with_gold(policy: Annotated[PairLogps, Roles("gold")], reference: PairLogps) -> LossOutput:
    """Pay the DPO loss and the NLL of the gold answer, for a test."""
    output = dpo(policy, reference)
    return replace(output, loss=output.loss - policy.others["gold"].mean)


def labelled(count: int) -> list[TokenizedGroup]:
    """Pairs taken apart, each with the answers of the next row."""
    apart = [replace(group, preferences=(), labels=(True, False)) for group in toy.groups(count)]
    return add_mismatched(apart, None)


def gold(count: int) -> list[TokenizedGroup]:
    """Groups of two answers and one gold text, which stands between them."""
    return [
        replace(group, roles=("answer", "gold", "answer"), preferences=(group.preferences[1],))
        for group in toy.groups(count, answers=3)
    ]


def two_prompts(count: int) -> list[TokenizedGroup]:
    """Pairs of which the rejected answer replies to the next row's prompt."""
    groups = toy.groups(count)
    prompts = [group.prompts[0] for group in groups]
    return [
        replace(group, prompts=(own, other), prompt_of=(0, 1))
        for group, own, other in zip(groups, prompts, [*prompts[1:], prompts[0]], strict=True)
    ]


CASES: dict[str, tuple[Callable[..., LossOutput], Callable[[int], list[TokenizedGroup]]]] = {
    **{
        name: (build_loss({"name": name}), toy.scored_groups)
        for name in ("plackett_luce", "pro_rank", "rrhf", "infonca_k", "nca_k", "exo_k", "tree", "sppo_k")
    },
    "labelled": (on_labelled, labelled),
    "gold": (with_gold, gold),
    "two prompts": (build_loss({"name": "joint_prompt"}), two_prompts),
}
every_case = pytest.mark.parametrize(("loss", "make"), CASES.values(), ids=CASES.keys())


def step_of(
    loss: Callable[..., LossOutput],
    groups: Sequence[TokenizedGroup],
    budget: int = 100_000,
    share_prompts: bool = True,
) -> tuple[dict[str, Tensor], int]:
    """Return the loss and all gradients of one step over all groups, and its number of packs."""
    contract = getattr(loss, "contract", None) or contract_of(loss)
    table = GroupTable.from_groups(groups)
    plan = Plan(
        table.sizes(share_prompts), units_per_step=10_000, tokens_per_batch=budget, unit=contract.structure
    )
    trainer = Trainer(
        toy.policy(),
        loss,
        PlannedSteps(plan, table, share_prompts),
        num_steps=1,
        reference=toy.reference(seed=1) if contract.needs_reference else None,
        engine=Engine(cpu=True),
    )
    sums, _, packs, *_ = trainer.accumulator.run(PlannedSteps(plan, table, share_prompts).build(0))
    grads = {name: p.grad.clone() for name, p in trainer.parameters.items() if p.grad is not None}
    assert len(grads) == 21
    return {"loss": sums.values["loss"], **grads}, len(packs)


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """1e-10: float64 sums in another order."""
    for name, value in wanted.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-10 * scale, msg=name)


@every_case
def test_shared_equals_separate(
    loss: Callable[..., LossOutput], make: Callable[[int], list[TokenizedGroup]]
) -> None:
    """All responses behind one prompt, or every response behind its own copy."""
    wanted, _ = step_of(loss, make(6), share_prompts=False)
    assert_same(step_of(loss, make(6))[0], wanted)


@every_case
def test_one_pack_equals_many(
    loss: Callable[..., LossOutput], make: Callable[[int], list[TokenizedGroup]]
) -> None:
    wanted, count = step_of(loss, make(8))
    found, many = step_of(loss, make(8), budget=70)
    assert count == 1 and many > 2
    assert_same(found, wanted)


def test_a_whole_group_is_one_unit_however_many_answers_it_has() -> None:
    """Two lists of 2 and 5 answers count alike: the step's loss is the mean of what each pays alone."""
    groups = [group for group in toy.scored_groups(20) if len(group.responses) in (2, 5)]
    short = next(group for group in groups if len(group.responses) == 2)
    long = next(group for group in groups if len(group.responses) == 5)
    loss = build_loss({"name": "plackett_luce"})
    alone = [step_of(loss, [group])[0] for group in (short, long)]
    together, _ = step_of(loss, [short, long])
    for name in together:
        divisor = 1 if name == "loss" else 2  # the sum is logged, the gradient is of the mean
        torch.testing.assert_close(
            together[name], (alone[0][name] + alone[1][name]) / divisor, rtol=1e-10, atol=1e-13
        )


def test_evaluation_means_are_over_units() -> None:
    """Lists and labelled answers go through the loop that only looks, too."""
    for name in ("plackett_luce", "labelled"):
        loss, make = CASES[name]
        contract = getattr(loss, "contract", None) or contract_of(loss)
        table = GroupTable.from_groups(make(8))
        plan = Plan(table.sizes(True), units_per_step=4, tokens_per_batch=90, unit=contract.structure)
        trainer = Trainer(
            toy.policy(),
            loss,
            PlannedSteps(plan, table),
            num_steps=1,
            reference=toy.reference(seed=1),
            engine=Engine(cpu=True),
        )
        means = trainer.evaluate(PlannedSteps(plan, table))
        step, _ = step_of(loss, make(8))
        units = 8 if name == "plackett_luce" else 16
        assert means["loss"] == pytest.approx(step["loss"].item() / units, rel=1e-12)
        assert ("reward/accuracy" in means) == (name == "plackett_luce")
        assert ("reward/desirable" in means) == (name == "labelled")


def test_scores_of_other_roles_do_not_reach_a_list() -> None:
    """A gold text has no score: NaN there leaves the loss finite, and the same as without the text."""
    plain = toy.scored_groups(3)
    extra = np.array([7, 8], np.int32)
    beside = [
        replace(
            group,
            responses=(*group.responses, extra),
            prompt_of=(*group.prompt_of, 0),
            roles=("answer",) * len(group.responses) + ("gold",),
            scores=(*(group.scores or ()), nan),
        )
        for group in plain
    ]
    loss = build_loss({"name": "plackett_luce"})
    assert_same(step_of(loss, beside)[0], step_of(loss, plain)[0])
