"""One of two gloo ranks: run one step over uneven packs and write its loss and gradients."""

from __future__ import annotations

import sys
import weakref
from contextlib import nullcontext
from pathlib import Path

import torch
import toy
from safetensors.torch import save_file

from prefopt.assemble.loss import build_loss
from prefopt.data.packs.steps import PlannedSteps, Reader
from prefopt.data.tokens.table import GroupTable
from prefopt.engine import Engine
from prefopt.errors import RecipeError
from prefopt.losses import dpo
from prefopt.optim import OptimSettings
from prefopt.trainer import Trainer


def again(engine: Engine) -> dict[str, torch.Tensor]:
    """Train a policy by one trainer and then by another, and let the first one go on, alone or inside a block."""
    data, policy = toy.table(24), toy.policy()
    steps = PlannedSteps(toy.plan(data, budget=80, per_step=24, world=engine.world), data)
    reference = toy.reference(seed=1)
    first = Trainer(policy, dpo, steps, num_steps=3, reference=reference, engine=engine)
    second = Trainer(policy, dpo, steps, num_steps=3, reference=reference, engine=engine)
    losses = [result.sums.vector()[1] for result in second.run(2)]
    weights = torch.cat([p.detach().flatten() for p in second.parameters.values()])
    refused = torch.zeros(2)
    with policy.bare() if engine.world > 1 else nullcontext():
        refused[0] = is_refused(second)
    refused[1] = is_refused(first)
    return {"losses": engine.sum(torch.stack(losses)), "weights": weights, "refused": refused}


def is_refused(trainer: Trainer) -> bool:
    try:
        next(trainer.run(1))
    except RecipeError as error:
        return "not as this trainer wrapped it" in str(error)
    return False


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    engine = Engine(cpu=True)
    out: dict[str, torch.Tensor] = {}
    on_pairs = build_loss({"name": "dpo", "with": [{"name": "with_nll", "nll": "batch_token"}]})
    on_lists = build_loss({"name": "plackett_luce"})
    cases = (
        ("even", 24, on_pairs),
        ("ghost", 1, on_pairs),
        ("lists", 24, on_lists),
        ("ghost_list", 1, on_lists),
    )
    for name, units, loss in cases:
        is_paired = loss is on_pairs
        data = toy.table(24) if is_paired else GroupTable.from_groups(toy.scored_groups(24))
        unit = loss.contract.structure
        plan = toy.plan(data, budget=80, per_step=units, world=engine.world, unit=unit)
        trainer = Trainer(
            toy.policy(),
            loss,
            PlannedSteps(plan, data),
            num_steps=2,
            reference=toy.reference(seed=1),
            optim=OptimSettings(lr=1e-3, warmup=0, clip=None),
            engine=engine,
        )
        step = PlannedSteps(plan, data).build(0, Reader(rank=engine.rank))
        sums, _, packs, *_ = trainer.accumulator.run(step)
        names, vector = sums.vector()
        out[f"{name}/metrics"] = engine.sum(vector)
        out[f"{name}/packs"] = torch.tensor([len(packs), sum(batch.is_ghost for batch in packs)])
        norm = engine.clip(trainer.parameters.values(), None)
        out[f"{name}/norm"] = norm
        for key, p in trainer.parameters.items():
            assert p.grad is not None
            out[f"{name}/grad/{key}"] = p.grad.clone()
        trainer.optimizer.zero_grad()
        losses = [result.sums.vector()[1] for result in trainer]
        out[f"{name}/losses"] = engine.sum(torch.stack(losses))
        out[f"{name}/weights"] = torch.cat([p.detach().flatten() for p in trainer.parameters.values()])
        out[f"{name}/eval"] = torch.tensor(
            trainer.evaluate(PlannedSteps(plan, data))["loss"], dtype=torch.float64
        )
        del names
    found = again(engine)
    out |= {name if name == "refused" else f"again/{name}": value for name, value in found.items()}
    uneven = torch.arange(3 + engine.rank, dtype=torch.float64) + 10 * engine.rank
    out["gathered"] = engine.gather(uneven)
    model = trainer.policy.model  # wrapped for two ranks
    reducer = weakref.ref(getattr(model, "reducer", model))
    engine.finish()
    out["reducer_lives"] = torch.tensor(reducer() is not None)
    save_file({k: v.contiguous() for k, v in out.items()}, str(folder / f"rank{engine.rank}.safetensors"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
