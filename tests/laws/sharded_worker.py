"""One of two gloo ranks: the same DPO steps on whole weights alone, then on weights spread over ranks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
import toy
from safetensors.torch import save_file
from torch import Tensor, nn

from prefopt.assemble.loss import build_loss
from prefopt.data.packs.steps import PlannedSteps
from prefopt.engine import Engine
from prefopt.optim import OptimSettings, make_optimizer
from prefopt.policy import Policy
from prefopt.reference import AdapterOffReference
from prefopt.trainer import Trainer
from prefopt.types import PackedBatch, SeqLogps

OPTIM = OptimSettings(lr=1e-3, warmup=0, clip=None, schedule="constant")
SEED, CLIP = 3, 0.01


class Recording(Policy):
    """Keep what was scored, by answer."""

    seen: dict[bytes, list[Tensor]]

    def __call__(self, batch: PackedBatch, *, stats: Collection[str] = ()) -> SeqLogps:
        found = super().__call__(batch, stats=stats)
        for key, part in zip(batch.keys, found.tokens.detach().split(list(batch.lengths)), strict=True):
            self.seen.setdefault(key, []).append(part)
        return found


class Alone(Engine):
    """The engine of a run of one process, though a second one does the same."""

    def __init__(self) -> None:
        super().__init__(cpu=True)
        self.rank, self.world = 0, 1


class LaidOut(Engine):
    """FSDP2 with a layout of the test's own."""

    def __init__(self, layout: Callable[[Any], None]) -> None:
        super().__init__(cpu=True)
        self.layout = layout

    def prepare(self, model: nn.Module) -> nn.Module:
        self.layout(model)
        return model

    def gradient(self, parameter: Any) -> Tensor:
        return parameter.grad.full_tensor()

    def weight(self, parameter: Any) -> Tensor:
        return parameter.detach().full_tensor()

    def step(self, trainer: Trainer) -> None:
        trainer.optimizer.step()

    def drop(self, trainer: Trainer) -> None:
        trainer.optimizer.zero_grad()


class Own(LaidOut):
    """The engine itself, told to shard by what ``accelerate launch --use_fsdp`` sets."""

    prepare = Engine.prepare

    def __init__(self) -> None:
        os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
        super().__init__(lambda model: None)
        del os.environ["ACCELERATE_USE_FSDP"]


class Zero(Engine):
    """DeepSpeed, driven from outside: told before each forward whether a pack is the last of its step."""

    def __init__(self, stage: int) -> None:
        super().__init__(cpu=True)
        self.stage = stage

    def prepare(self, model: nn.Module) -> nn.Module:
        import deepspeed

        config = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "zero_allow_untested_optimizer": True,
            # even the smallest weight is spread over the ranks
            "zero_optimization": {"stage": self.stage, "stage3_param_persistence_threshold": 0},
        }
        self.wrapped, *_ = deepspeed.initialize(
            model=model, optimizer=make_optimizer(OPTIM, model), config=config
        )
        return self.wrapped

    def unwrap(self, model: nn.Module) -> nn.Module:
        return model.module if model is self.wrapped else model

    def accumulate(self, model: nn.Module, *, is_last: bool) -> Any:
        self.wrapped.set_gradient_accumulation_boundary(is_last)
        return super().accumulate(model, is_last=is_last)

    def backward(self, loss: Tensor) -> None:
        self.wrapped.backward(loss * self.world)

    def gradient(self, parameter: Any) -> Tensor:
        from deepspeed.utils import safe_get_full_grad

        return safe_get_full_grad(parameter)

    def weight(self, parameter: Any) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param

        return safe_get_full_fp32_param(parameter)

    def step(self, trainer: Trainer) -> None:
        self.wrapped.step()

    def drop(self, trainer: Trainer) -> None:
        self.wrapped.optimizer.zero_grad()


def tied(dtype: torch.dtype) -> nn.Module:
    model = toy.llama(dtype=dtype)
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    return model


def checkpointed(dtype: torch.dtype) -> nn.Module:
    model = toy.llama(dtype=dtype)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def lora(dtype: torch.dtype, *targets: str) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(SEED)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=list(targets), task_type="CAUSAL_LM")
    model = get_peft_model(toy.llama(dtype=dtype), config).to(dtype)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zeros at first, which would leave the other factor without a gradient
            nn.init.normal_(parameter, std=0.3)
    return model


MODELS: dict[str, Callable[[torch.dtype], nn.Module]] = {
    "untied": lambda dtype: toy.llama(dtype=dtype),
    "tied": tied,
    "checkpointed": checkpointed,
    "lora": lambda dtype: lora(dtype, "q_proj", "up_proj"),
    "lora_head": lambda dtype: lora(dtype, "q_proj", "lm_head"),
}


def layers_alone(model: Any) -> None:
    """Shard layer by layer; embeddings, norm and head fall to the root."""
    from torch.distributed.fsdp import fully_shard

    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    for layer in core.model.layers:
        fully_shard(layer)
    fully_shard(model)


def head_apart(model: Any) -> None:
    """Shard the head by itself too, gathered again for the backward pass."""
    from torch.distributed.fsdp import fully_shard

    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    fully_shard(core.lm_head, reshard_after_forward=True)
    layers_alone(model)


def accumulate(trainer: Trainer) -> tuple[dict[str, Tensor], list[PackedBatch]]:
    """Add up the gradients of the first step and return the metrics summed over ranks."""
    step = trainer.steps.build(0, trainer.reader)
    sums, _, packs, *_ = trainer.accumulator.run(step)
    names, vector = sums.vector()
    return dict(zip(names, trainer.engine.sum(vector), strict=True)), packs


def build(model: nn.Module, engine: Engine, dtype: torch.dtype, compile_for: int | None = None) -> Trainer:
    data = toy.table(9)
    policy = Recording(model, compile_for=compile_for)
    policy.seen = {}
    has_adapter = hasattr(model, "peft_config")
    reference = (
        AdapterOffReference(policy, is_start=False) if has_adapter else toy.reference(seed=1, dtype=dtype)
    )
    return Trainer(
        policy,
        build_loss({"name": "dpo", "with": [{"name": "with_nll", "nll": "batch_token"}]}),
        PlannedSteps(toy.plan(data, budget=80, per_step=9, world=engine.world), data),
        num_steps=2,
        reference=reference,
        optim=OPTIM,
        engine=engine,
    )


def compare(
    name: str,
    model: str,
    engine: Any,
    dtype: torch.dtype,
    out: dict[str, Tensor],
    compile_for: int | None = None,
) -> None:
    """Write log-probs, metrics, gradients and stepped weights of one case, whole and spread over ranks."""
    alone = build(MODELS[model](dtype), Alone(), dtype)
    expected, _ = accumulate(alone)
    is_own = isinstance(engine, Own)
    if is_own:
        expected["norm"] = alone.engine.clip(alone.parameters.values(), CLIP)
    gradients = {key: p.grad for key, p in alone.parameters.items()}
    alone.optimizer.step()

    trainer = build(MODELS[model](dtype), engine, dtype, compile_for)
    accumulate(trainer)
    engine.drop(trainer)  # as a step that is not finite would be
    trainer.policy.seen.clear()
    found, packs = accumulate(trainer)
    if is_own:
        found["norm"] = engine.clip(trainer.parameters.values(), CLIP)
        assert all(p.to_local().numel() < p.numel() for p in trainer.parameters.values())
    keys = sorted(trainer.policy.seen)
    # once, or with an adapter a second time without it; a ghost's answer once more
    times = 2 if hasattr(alone.policy.model, "peft_config") else 1
    for run, seen in (("alone", alone.policy.seen), ("spread", trainer.policy.seen)):
        out[f"{name}/{run}/logps"] = torch.cat([part for key in keys for part in seen[key][:times]])
    for key, value in expected.items():
        out[f"{name}/alone/{key}"], out[f"{name}/spread/{key}"] = value, found[key]
    for key, parameter in trainer.parameters.items():
        out[f"{name}/alone/grad/{key}"] = gradients[key]
        out[f"{name}/spread/grad/{key}"] = engine.gradient(parameter)
    engine.step(trainer)
    for key, parameter in trainer.parameters.items():
        out[f"{name}/alone/weight/{key}"] = alone.parameters[key].detach()
        out[f"{name}/spread/weight/{key}"] = engine.weight(parameter)
    out[f"{name}/packs"] = torch.tensor([batch.num_tokens for batch in packs])
    out[f"{name}/ghosts"] = torch.tensor([batch.is_ghost for batch in packs])
    out[f"{name}/self_check"] = torch.tensor(trainer.policy.self_check())


def fsdp(out: dict[str, Tensor]) -> None:
    """FSDP2 in float64: the layouts of the head, adapters, checkpointing."""
    cases = {
        "head in the root": ("untied", layers_alone),
        "head apart": ("untied", head_apart),
        "tied in the root": ("tied", layers_alone),
        "checkpointed": ("checkpointed", head_apart),
        "lora": ("lora", head_apart),
        "lora on the head": ("lora_head", head_apart),
    }
    for name, (model, layout) in cases.items():
        compare(name, model, LaidOut(layout), torch.float64, out)
    for model in ("untied", "tied", "lora"):
        compare(f"own, {model}", model, Own(), torch.float64, out)


def compiled(out: dict[str, Tensor]) -> None:
    """FSDP2 over compiled layers, checkpointed ones and adapters among them."""
    from prefopt.policy import compiling

    compiling.BACKEND = "aot_eager"
    for model in ("untied", "checkpointed", "lora"):
        compare(f"compiled, {model}", model, Own(), torch.float64, out, compile_for=80)


def zero(out: dict[str, Tensor]) -> None:
    """DeepSpeed in float32, the widest it sums gradients in."""
    import deepspeed

    # its own shared-memory all-reduce would be compiled first, which takes minutes
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    for model in MODELS:
        compare(f"zero 3, {model}", model, Zero(3), torch.float32, out)
    compare("zero 1, untied", "untied", Zero(1), torch.float32, out)


def main(folder: Path, which: str) -> None:
    torch.set_num_threads(1)
    out: dict[str, Tensor] = {}
    engine = Engine(cpu=True)
    {"fsdp": fsdp, "compiled": compiled, "zero": zero}[which](out)
    save_file(
        {k: v.contiguous().clone() for k, v in out.items()}, str(folder / f"rank{engine.rank}.safetensors")
    )
    engine.finish()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
