"""How a step is split into packs changes nothing: values and gradients, in float64."""

from __future__ import annotations

import pytest
import torch
import toy

from prefopt.assemble.loss import BoundLoss, build_loss
from prefopt.data.packs.steps import PlannedSteps
from prefopt.engine import Engine
from prefopt.trainer import Trainer
from prefopt.types import Step

BLOCKS = [
    {"name": "dpo"},
    {"name": "dpo", "with": [{"name": "with_nll", "nll": "batch_token"}]},
    {"name": "ipo"},
    {"name": "simpo"},
    {"name": "wpo"},
    {"name": "ld_dpo"},
    {"name": "sft"},
    {"name": "sft", "nll": "batch_token"},
    {"name": "tdpo"},
    {"name": "mapo"},
    {"name": "sparse_mask_independent"},
    {"name": "pmpo"},
    {"name": "nca_pair", "with": [{"name": "suffix_from_divergence", "length_penalty": 0.5}]},
    {"name": "ipo", "with": [{"name": "token_weighted", "source": "activations"}]},
]


def gradients(
    loss: BoundLoss, budget: int, share_prompts: bool = True
) -> tuple[float, dict[str, torch.Tensor], int]:
    """Return loss, gradients and the number of packs of one step."""
    unit = loss.contract.structure
    data = toy.table(24)
    plan = toy.plan(data, budget=budget, per_step=24 if unit == "pairs" else 48, unit=unit)
    trainer = Trainer(
        toy.policy(),
        loss,
        PlannedSteps(plan, data, share_prompts),
        num_steps=1,
        reference=toy.reference(seed=1) if loss.contract.needs_reference else None,
        engine=Engine(cpu=True),
        masks=toy.masks(loss),
    )

    step: Step = PlannedSteps(plan, data, share_prompts).build(0)
    sums, _, packs, *_ = trainer.accumulator.run(step)
    grads = {name: p.grad.clone() for name, p in trainer.trained.items() if p.grad is not None}
    return sums.values["loss"].item(), grads, len(packs)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: f"{b['name']}-{len(b)}")
def test_one_pack_equals_many(block: dict[str, object]) -> None:
    """24 pairs in 1, 3 and about 12 packs give one gradient; rtol 1e-10 is float64 rounding."""
    loss = build_loss(block)
    value, grads, count = gradients(loss, budget=100_000)
    assert count == 1 and len(grads) == (35 if toy.masks(loss) else 21)
    for budget in (150, 50):
        other, others, many = gradients(loss, budget)
        assert many > 2
        assert other == pytest.approx(value, rel=1e-12)
        for name, grad in grads.items():
            torch.testing.assert_close(others[name], grad, rtol=1e-10, atol=1e-14)


def test_sharing_prompts_changes_nothing() -> None:
    loss = build_loss({"name": "dpo"})
    value, grads, _ = gradients(loss, budget=150)
    other, others, _ = gradients(loss, budget=150, share_prompts=False)
    assert other == pytest.approx(value, rel=1e-12)
    for name, grad in grads.items():
        torch.testing.assert_close(others[name], grad, rtol=1e-10, atol=1e-14)


def test_the_law_can_fail() -> None:
    """Dividing by each pack's own pairs instead of the step's would move the gradient by per cents."""
    loss = build_loss({"name": "dpo"})
    _, grads, _ = gradients(loss, budget=100_000)
    data = toy.table(24)
    plan = toy.plan(data, budget=50, per_step=24)
    trainer = Trainer(
        toy.policy(),
        loss,
        PlannedSteps(plan, data),
        num_steps=1,
        reference=toy.reference(seed=1),
        engine=Engine(cpu=True),
    )

    packs = PlannedSteps(plan, data).build(0).packs
    for batch in packs:
        _, numerator = trainer.accumulator.forward(batch, plan.step(0).totals, 0)
        trainer.engine.backward(numerator / len(batch.pairs) / len(packs))
    wrong = trainer.parameters["lm_head.weight"].grad
    assert wrong is not None
    assert (wrong - grads["lm_head.weight"]).norm() > 1e-2 * grads["lm_head.weight"].norm()
