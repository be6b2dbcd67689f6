"""One of two gloo ranks, or one process alone: train a few steps with losses on single tokens."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import toy
from safetensors.torch import save_file
from torch import Tensor, nn

from prefopt.assemble.loss import build_loss
from prefopt.data.packs.steps import PlannedSteps
from prefopt.engine import Engine, sharding
from prefopt.optim import OptimSettings
from prefopt.policy import Policy
from prefopt.reference import AdapterOffReference, FrozenReference, LiveReference
from prefopt.trainer import Trainer

CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "tdpo": ({"name": "tdpo"}, False),
    "tdpo, lora": ({"name": "tdpo", "variant": "tdpo1"}, True),
    "sparse_mask": ({"name": "sparse_mask_independent"}, False),
    "mapo, lora": ({"name": "mapo"}, True),
}
"""The loss, and whether an adapter is trained, with the base as reference."""


def lora() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    model = get_peft_model(toy.llama(), config).double()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def reference_of(policy: Policy, engine: Engine, *, is_base: bool) -> LiveReference:
    if is_base:
        return AdapterOffReference(policy, is_start=False)
    other = toy.policy(seed=1)
    other.place(engine)
    return FrozenReference(other, is_start=False)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    engine = Engine(cpu=True)
    out: dict[str, Tensor] = {}
    for name, (block, has_adapter) in CASES.items():
        loss = build_loss(block)
        data = toy.table(24)
        plan = toy.plan(data, budget=80, per_step=9, world=engine.world)
        policy = Policy(lora()) if has_adapter else toy.policy()
        policy.place(engine)
        trainer = Trainer(
            policy,
            loss,
            PlannedSteps(plan, data),
            num_steps=2,
            reference=reference_of(policy, engine, is_base=has_adapter),
            optim=OptimSettings(lr=1e-3, warmup=0, clip=0.05, mask_lr=1e-2),
            engine=engine,
            masks=toy.masks(loss),
        )
        results = list(trainer)
        out[f"{name}/norms"] = torch.stack([result.grad_norm for result in results]).double()
        sums = torch.stack([result.sums.vector()[1] for result in results])
        out[f"{name}/metrics"] = engine.sum(sums)
        for key, parameter in trainer.trained.items():
            out[f"{name}/weight/{key}"] = sharding.whole(parameter.detach())
        out[f"{name}/packs"] = torch.tensor(len(plan.step(0).ranks[engine.rank]))
        loss_of_all = trainer.evaluate(PlannedSteps(plan, data))["loss"]
        out[f"{name}/eval"] = torch.tensor(loss_of_all, dtype=torch.float64)
    kept = {key: value.contiguous().clone() for key, value in out.items()}
    save_file(kept, str(folder / f"rank{engine.rank}.safetensors"))
    engine.finish()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
