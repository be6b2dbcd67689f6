"""A loss over the whole step: how the step is split into packs and ranks changes nothing, in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import coupled
import gloo
import numpy as np
import pytest
import torch
import toy
from safetensors.torch import load_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from prefopt.data.packs.pack import pack
from prefopt.data.packs.plan import Plan
from prefopt.data.packs.steps import PlannedSteps
from prefopt.engine import Engine
from prefopt.losses import contract_of
from prefopt.losses._terms import recording_stops, replaying_stops
from prefopt.policy import Policy
from prefopt.trainer import Trainer
from prefopt.trainer.evaluate import charge_whole
from prefopt.trainer.inputs import inputs_of
from prefopt.trainer.objective import mix
from prefopt.trainer.weighting import TokenMasks
from prefopt.types import LossOutput, PackedBatch, PairLogps, SeqLogps, Stats, WholeStep

HERE = Path(__file__).resolve().parent
every_case = pytest.mark.parametrize("case", coupled.BLOCKS)
Found = tuple[float, dict[str, Tensor], int]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(cpu=True)


def accumulate(trainer: Trainer) -> Found:
    """Return loss, gradients and the number of packs of step 0."""
    trainer.optimizer.zero_grad()
    sums, _, packs, *_ = trainer.accumulator.run(trainer.steps.build(0, trainer.reader))
    grads = {name: p.grad.clone() for name, p in trainer.trained.items() if p.grad is not None}
    return sums.values["loss"].item(), grads, len(packs)


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Compare gradients to 1e-10 of the largest entry, which is float64 rounding."""
    assert found.keys() == wanted.keys()
    for name, grad in wanted.items():
        scale = float(grad.abs().max())
        assert scale > 0, f"{name} would agree whatever was computed"
        torch.testing.assert_close(found[name], grad, rtol=1e-10, atol=1e-10 * scale, msg=name)


def directly(trainer: Trainer) -> tuple[float, dict[str, Tensor]]:
    """Return loss and gradients by one graph from the weights to the loss, all groups in the plan's order."""
    trainer.optimizer.zero_grad()
    contract, plan = trainer.contract, trainer.steps.plan
    totals = plan.step(0).totals
    batch = pack([trainer.steps.groups[i] for i in plan.groups(0)])
    policy, reference, _ = trainer.scorer.both(batch)
    scored = [policy] if reference is None else [policy, reference]
    objective = trainer.objective
    sides = [objective.arrange(batch, logps) for logps in scored]
    inputs = inputs_of(contract.inputs, objective.structure, batch, totals, mix(objective.seed, 0))
    loss = objective.loss(*sides, **inputs).loss
    total = (loss * objective.structure.weigh(batch, loss)).sum()
    (total / trainer.units(totals)).backward()
    return total.item(), {name: p.grad.clone() for name, p in trainer.trained.items()}


@every_case
def test_any_number_of_packs_gives_the_gradient_of_one_graph(case: str, engine: Engine) -> None:
    data = coupled.rows_of(case)
    value, wanted = directly(coupled.trainer_of(case, data, engine))
    counts = []
    for budget in (10_000, 150, 40):
        found, grads, count = accumulate(coupled.trainer_of(case, data, engine, budget=budget))
        assert found == pytest.approx(value, rel=1e-12)
        same(grads, wanted)
        counts.append(count)
    assert counts[0] == 1 and counts[1] == 3 and counts[2] > 8


def test_the_law_can_fail(engine: Engine) -> None:
    """Quantiles matched within each pack, as a loop over micro-batches does, move the gradient by per cents."""
    data = coupled.rows(24)
    _, wanted, _ = accumulate(coupled.trainer_of("aot", data, engine))
    trainer = coupled.trainer_of("aot", data, engine, budget=60)
    step = trainer.steps.build(0)
    assert len(step.packs) > 4
    for batch in step.packs:
        _, numerator = trainer.accumulator.forward(batch, step.totals, 0)
        trainer.engine.backward(numerator / 24)
    wrong = trainer.parameters["lm_head.weight"].grad
    assert wrong is not None
    assert (wrong - wanted["lm_head.weight"]).norm() > 1e-2 * wanted["lm_head.weight"].norm()


def test_groups_of_several_pairs_some_of_them_drawn_twice(engine: Engine) -> None:
    """Twelve groups of three answers, half of them twice in the step: the plan's order is found in any packing."""
    data = coupled.rows(12, answers=3)
    source_of = np.arange(12) % 2
    found = []
    for budget in (10_000, 90):
        trainer = coupled.trainer_of("relative", data, engine)
        plan = Plan.of(
            data,
            units_per_step=36,
            tokens_per_batch=budget,
            source_of=source_of,
            source_weights=(2.0, 1.0),
        )
        trainer.feed(PlannedSteps(plan, data))
        assert len(plan.groups(0)) == 18
        found.append((*accumulate(trainer), directly(trainer)))
    (one, grads, packs, (value, direct)), (other, others, many, _) = found
    assert packs == 1 and many > 4
    assert one == pytest.approx(value, rel=1e-12) and other == pytest.approx(value, rel=1e-12)
    same(grads, direct)
    same(others, direct)


def spread_of_entropy(
    policy: Annotated[PairLogps, WholeStep(), Stats("is_top1", "entropy")],
) -> LossOutput:
    """Pay the squared distance of each pair's entropy from the mean of the step: a gradient through a statistic."""
    entropy = policy.chosen.sum(policy.chosen.stats["entropy"]) + policy.rejected.mean
    return LossOutput(loss=(entropy - entropy.mean()).square())


def spread_of_masked_kl(
    policy: Annotated[PairLogps, WholeStep(), Stats("kl", "reward_mask")], reference: PairLogps
) -> LossOutput:
    """Do the same with the divergence from the reference, each token weighed by a learned mask."""
    chosen, rejected = (
        side.sum(side.stats["kl"] * side.stats["reward_mask"]) for side in (policy.chosen, policy.rejected)
    )
    gap = chosen - rejected + policy.chosen.total - reference.chosen.total
    return LossOutput(loss=(gap - gap.mean()).square())


def learning(loss: Callable[..., LossOutput]) -> dict[str, Any]:
    """Return the reference and the masks that a loss asks for."""
    wanted = contract_of(loss).row_stats
    if not wanted:
        return {}
    torch.manual_seed(1)
    masks = TokenMasks(2, 16, wanted, dropout=0.0).double()
    return {"reference": toy.reference(seed=1), "masks": masks}


@pytest.mark.parametrize("loss", [spread_of_entropy, spread_of_masked_kl])
def test_gradients_of_statistics_are_replayed_too(loss: Callable[..., LossOutput], engine: Engine) -> None:
    """Also those that need the reference's hidden states, and reach a module beside the policy."""
    data = coupled.rows(24)
    found = []
    for budget in (10_000, 90):
        plan = Plan.of(data, units_per_step=24, tokens_per_batch=budget)
        trainer = Trainer(
            toy.policy(), loss, PlannedSteps(plan, data), num_steps=1, engine=engine, **learning(loss)
        )
        assert (len(trainer.trained) > 21) == (loss is spread_of_masked_kl)
        found.append((accumulate(trainer), directly(trainer)))
    for (value, grads, _), (wanted, direct) in found:
        assert value == pytest.approx(wanted, rel=1e-12)
        same(grads, direct)
    assert found[1][0][2] > 4


@every_case
def test_the_gradient_is_that_of_finite_differences(case: str, engine: Engine) -> None:
    """Two random directions in weight space, with what the loss stops held still, good to 1e-6."""
    data = coupled.rows_of(case, 10)
    trainer = coupled.trainer_of(case, data, engine, budget=60, per_step=10)
    _, grads, packs = accumulate(trainer)
    assert packs > 2
    step = trainer.steps.build(0, trainer.reader)

    @torch.no_grad()
    def objective() -> float:
        sums = charge_whole(step, step.totals, trainer.scorer, trainer.objective)
        return sums.values["loss"].item() / trainer.units(step.totals)

    with recording_stops() as stopped:
        objective()
    torch.manual_seed(0)
    for _ in range(2):
        direction = {name: torch.randn_like(p) for name, p in trainer.parameters.items()}
        values = []
        for size in (2e-6, -2e-6):
            move(trainer, direction, size)
            with replaying_stops(list(stopped)):
                values.append(objective())
            move(trainer, direction, -size)
        slope = sum((grads[name] * direction[name]).sum().item() for name in grads)
        assert (values[0] - values[1]) / 4e-6 == pytest.approx(slope, rel=1e-6, abs=2e-8)


@torch.no_grad()
def move(trainer: Trainer, direction: dict[str, Tensor], size: float) -> None:
    for name, parameter in trainer.parameters.items():
        parameter += size * direction[name]


def test_both_passes_drop_alike(engine: Engine) -> None:
    """Dropout 0.4: each pack but the last is scored twice, bit for bit alike."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=toy.VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=64, bos_token_id=0,
        eos_token_id=0, resid_pdrop=0.4, embd_pdrop=0.4, attn_pdrop=0.0,
    )  # fmt: skip
    seen: list[tuple[PackedBatch, SeqLogps]] = []

    class Recording(Policy):
        def __call__(self, batch: PackedBatch, **options: Any) -> SeqLogps:
            found = super().__call__(batch, **options)
            seen.append((batch, found.detach()))
            return found

    data = coupled.rows(24)
    plan = Plan.of(data, units_per_step=24, tokens_per_batch=150)
    policy = Recording(GPT2LMHeadModel(config).double(), dropout=True)
    trainer = Trainer(
        policy, coupled.build_loss({"name": "aot"}), PlannedSteps(plan, data), num_steps=1, engine=engine,
        reference=toy.reference(seed=1),
    )  # fmt: skip
    policy.model.train()
    _, _, count = accumulate(trainer)
    assert count > 2 and len(seen) == 2 * count - 1
    for at in range(count - 1):
        (batch, first), (again, second) = seen[at], seen[count + at]
        assert batch.keys == again.keys
        assert torch.equal(first.tokens, second.tokens)
    policy.model.eval()
    assert not torch.equal(policy(seen[0][0]).tokens, seen[0][1].tokens)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("coupled")
    gloo.launch(2, [HERE / "coupled_worker.py", folder])
    return [load_file(str(folder / f"rank{rank}.safetensors")) for rank in range(2)]


@pytest.mark.parametrize(("case", "split"), coupled.SPLITS)
def test_two_ranks_are_one_process(case: str, split: str, ranks: list[dict[str, Tensor]]) -> None:
    """Metrics, gradients, what is carried, weights after two steps, evaluation; uneven packs, ghosts, FSDP2.

    float64: 1e-10 for the first step, 1e-9 for what AdamW makes of it.
    """
    exact = ("metric", "grad", "step/0", "carried/0")
    for rank in ranks:
        keys = [key for key in rank if key.startswith(f"{case}/{split}/alone/") and "/packs" not in key]
        assert sum("/grad/" in key for key in keys) == 21
        carries = any(name in case for name in ("bco", "beta_dynamic", "alpha_margin"))
        assert any("/carried/" in key for key in keys) == carries
        for key in keys:
            rtol = 1e-10 if key.partition("/alone/")[2].startswith(exact) else 1e-9
            scale = float(rank[key].abs().max())
            got = rank[key.replace("/alone/", "/two/")]
            torch.testing.assert_close(got, rank[key], rtol=rtol, atol=rtol * scale + 1e-13, msg=key)


def test_the_ranks_held_different_work(ranks: list[dict[str, Tensor]]) -> None:
    first, second = ranks
    assert first["aot/even/two/packs"][0] == second["aot/even/two/packs"][0] > 1
    assert first["aot/ghost/two/packs"].tolist() == [1, 0]
    assert second["aot/ghost/two/packs"].tolist() == [1, 1]
