"""Models of known shapes with random weights, built from their configuration on the device they run on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen3Config

from benchmarks.step.flops import Sizes

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PAD, EOS = 0, 1
"""Token ids that no random row holds."""

_CONFIGS: dict[str, type[PretrainedConfig]] = {"llama": LlamaConfig, "qwen3": Qwen3Config}


@dataclass(frozen=True, slots=True)
class Model:
    """A model's shape, its precision and what of it is trained.

    Args:
        name: in tables.
        kind: "llama" or "qwen3".
        sizes: its widths and depths.
        ties: embeddings and head are one matrix.
        positions: longest sequence.
        theta: base of the rotary embedding.
        dtype: of weights, gradients and AdamW's moments.
        autocast: compute in bfloat16 whatever the weights are.
        rank: of adapters on every matrix of the layers; 0 trains all weights.
    """

    name: str
    kind: str
    sizes: Sizes
    ties: bool = False
    positions: int = 40960
    theta: float = 1e4
    dtype: str = "float32"
    autocast: bool = False
    rank: int = 0

    def config(self) -> PretrainedConfig:
        """Return a new configuration, as trainers write their choices into it."""
        sizes = self.sizes
        settings: dict[str, Any] = {
            "vocab_size": sizes.vocab,
            "hidden_size": sizes.hidden,
            "intermediate_size": sizes.intermediate,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.kv_heads,
            "head_dim": sizes.head_dim,
            "max_position_embeddings": self.positions,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.theta},
            "tie_word_embeddings": self.ties,
            "pad_token_id": PAD,
            "bos_token_id": EOS,
            "eos_token_id": EOS,
        }
        return _CONFIGS[self.kind](**settings)

    @property
    def compute(self) -> torch.dtype:
        """Return the dtype of products."""
        return torch.bfloat16 if self.autocast else DTYPES[self.dtype]

    @property
    def counted(self) -> Sizes:
        """Return the sizes with the parameters of the adapters."""
        return replace(self.sizes, adapter=self.sizes.adapter_of(self.rank))

    def describe(self) -> str:
        """Say what is trained in which precision."""
        trained = f"LoRA of rank {self.rank} on all linear layers" if self.rank else "all weights"
        computed = ", computed under bfloat16 autocast" if self.autocast else ""
        return f"{self.name}, random weights, {trained} in {self.dtype}{computed}"


def build_base(model: Model, device: str, seed: int, attention: str | None = None) -> Any:
    """Build the model without adapters, its weights drawn on the device.

    Args:
        model: which one.
        device: "cpu" or "cuda".
        seed: equal seeds give equal weights.
        attention: an implementation known to transformers; None: its default.
    """
    torch.manual_seed(seed)
    chosen: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    build: Callable[..., Any] = AutoModelForCausalLM.from_config
    with torch.device(device):
        return build(model.config(), dtype=DTYPES[model.dtype], **chosen)


def adapter_config(model: Model, *, is_start: bool) -> Any:
    """Return peft's settings of the adapters.

    Args:
        model: its ``rank``.
        is_start: adapters add nothing at first; otherwise they are drawn at random, so that policy and base
            differ and a comparison of losses says something.
    """
    from peft import LoraConfig

    return LoraConfig(
        r=model.rank,
        lora_alpha=model.rank,
        lora_dropout=0.0,
        target_modules="all-linear",
        init_lora_weights=is_start,
        task_type="CAUSAL_LM",
    )


def with_adapters(base: nn.Module, model: Model, *, seed: int, is_start: bool) -> Any:
    """Put adapters on a base and freeze it; they get the base's dtype."""
    from peft import get_peft_model

    torch.manual_seed(seed)
    settings = adapter_config(model, is_start=is_start)
    adapt: Callable[..., Any] = get_peft_model
    return adapt(base, settings, autocast_adapter_dtype=False)


def recompute_layers(model: Any) -> None:
    """Keep only the input of every layer for the backward; the method was renamed within transformers 5."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


SMALL = Model("4-layer Llama", "llama", Sizes(4, 256, 688, 4, 4, 64, 8192), positions=2048)
"""Trained on the CPU; 688 is Llama's own ratio to the hidden size."""

_QWEN3 = Model(
    "Qwen3-0.6B",
    "qwen3",
    Sizes(28, 1024, 3072, 16, 8, 128, 151936),
    ties=True,
    theta=1e6,
    dtype="bfloat16",
)
MODELS = {
    model.name: model
    for model in (
        _QWEN3,
        replace(_QWEN3, name="Qwen3-1.7B", sizes=replace(_QWEN3.sizes, hidden=2048, intermediate=6144)),
        Model(
            "Llama-3.1-8B",
            "llama",
            Sizes(32, 4096, 14336, 32, 8, 128, 128256),
            positions=131072,
            theta=5e5,
            dtype="bfloat16",
            rank=16,
        ),
    )
}
"""Trained on a GPU, at full size."""
