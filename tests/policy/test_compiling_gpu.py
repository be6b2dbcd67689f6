"""Compiled layers and quantised weights on a GPU. Run ``pytest -m gpu``."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from prefopt.assemble.loss import build_loss
from prefopt.data.packs.pack import group_of, pack
from prefopt.data.packs.plan import Plan
from prefopt.data.packs.steps import PlannedSteps
from prefopt.engine import Engine
from prefopt.optim import OptimSettings
from prefopt.policy import Policy, quantize
from prefopt.policy.load import load_model
from prefopt.reference import AdapterOffReference
from prefopt.trainer import Trainer
from prefopt.types import PackedBatch, TokenizedGroup

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore"),  # of the compiler and its code generator
]
SIZE = 1024


def llama(dtype: torch.dtype) -> LlamaForCausalLM:
    """Heads of 64, which every attention kernel serves."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).to("cuda", dtype)


def groups(count: int, seed: int) -> list[TokenizedGroup]:
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (), generator=generator))
        return torch.randint(0, 1000, (length,), generator=generator).tolist()

    return [group_of(ids(20, 60), [ids(10, 60), ids(10, 60)], row_id=row) for row in range(count)]


def batches() -> list[PackedBatch]:
    return [pack(groups(2 + seed, seed)).to("cuda") for seed in range(4)]


def gradients(policy: Policy, logps: Tensor) -> Tensor:
    policy.model.zero_grad(set_to_none=True)
    (logps * torch.linspace(-1, 1, logps.numel(), device="cuda")).sum().backward()
    return torch.cat([p.grad.float().flatten() for p in policy.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)], ids=str)
def test_compiled_layers_agree_with_those_as_written(
    dtype: torch.dtype, close: float, checkpointing: bool
) -> None:
    """Four packings, one graph: log-probs and gradients within ``close`` of their norm.

    float32 products may differ in their last bits, bfloat16 code leaves roundings out between its steps.
    """
    plain, model = Policy(llama(dtype)), llama(dtype)
    compiled = Policy(model, compile_for=SIZE)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    for batch in batches():
        ours, wanted = compiled(batch).tokens, plain(batch).tokens
        assert (ours - wanted).norm() < close * wanted.norm()
        found, truth = gradients(compiled, ours), gradients(plain, wanted)
        assert (found - truth).norm() < close * truth.norm()
    assert compiled.compiled is not None and compiled.compiled.num_graphs == 1


def test_what_attention_keeps_is_given_back() -> None:
    """After a step's backward no more memory is held than after the first one."""
    policy = Policy(llama(torch.bfloat16), compile_for=SIZE)
    policy.model.train()
    batch, held = batches()[0], []
    for _ in range(4):
        policy(batch).tokens.sum().backward()
        policy.model.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        held.append(torch.cuda.memory_allocated())
    assert held[1] == held[2] == held[3]


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
@pytest.mark.parametrize("size", [None, SIZE])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_adapters_train_on_quantised_weights(kind: str, size: int | None, tmp_path: Path) -> None:
    """Step-0 identity, and a loss that falls; with layers as written and compiled."""
    peft = pytest.importorskip("peft")
    llama(torch.bfloat16).save_pretrained(tmp_path)
    settings = quantize.loading_config(kind, torch.bfloat16)
    model = load_model(str(tmp_path), dtype=torch.bfloat16, key="model.path", quantization=settings)
    adapter = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    policy = Policy(peft.get_peft_model(model, adapter), compile_for=size)
    policy.self_check()
    data = groups(8, 0)
    trainer = Trainer(
        policy,
        build_loss({"name": "dpo"}),
        PlannedSteps(Plan.of(data, units_per_step=8, tokens_per_batch=SIZE), data),
        num_steps=20,
        reference=AdapterOffReference(policy, is_start=True),
        optim=OptimSettings(lr=1e-3, warmup=0),
        engine=Engine(),
    )
    losses = [result.sums.values["loss"].item() / result.units for result in trainer]
    assert trainer.identity is not None and losses[-1] < losses[0] - 0.05
