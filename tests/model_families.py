"""Families of causal models, as small as they can be: those that are scored exactly, and those that are refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

VOCABULARY, WINDOW = 89, 6
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NO_GROUPS = {"num_key_value_heads": 4}
GPT2_STYLE = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"]}


@torch.no_grad()
def louden(model: PreTrainedModel, std: float) -> PreTrainedModel:
    """Draw the weights of a model anew, large enough for its log-probs to tell contexts apart."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "norm" not in name:
            parameter.normal_(std=std)
        elif "sinks" in name:
            parameter.normal_()
    return model


@dataclass(frozen=True)
class Family:
    """One architecture: its configuration class and what makes it different from Llama."""

    config: str
    extra: dict[str, Any] = field(default_factory=dict)
    base: dict[str, Any] = field(default_factory=lambda: COMMON)

    def build(self) -> PreTrainedModel:
        """Build a tiny model with weights large enough for its log-probs to tell contexts apart."""
        kind = getattr(transformers, self.config, None)
        if kind is None:
            pytest.skip(f"this transformers has no {self.config}")
        torch.manual_seed(0)
        config = kind(**{**self.base, **self.extra})
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        return louden(model, 0.25)


EXACT = {
    "llama": Family("LlamaConfig", {"attention_bias": True}),
    "qwen2": Family("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen2_sliding": Family(
        "Qwen2Config", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
    ),
    "qwen3": Family("Qwen3Config", {"head_dim": 16}),
    "qwen3_moe": Family(
        "Qwen3MoeConfig",
        {"head_dim": 8, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2},
    ),
    "mistral": Family("MistralConfig", {"sliding_window": WINDOW}),
    "mixtral": Family("MixtralConfig", EXPERTS),
    "gemma": Family("GemmaConfig", {"head_dim": 8}),
    "gemma2": Family(
        "Gemma2Config",
        {
            "head_dim": 8,
            "sliding_window": WINDOW,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": Family(
        "Gemma3TextConfig",
        {"head_dim": 8, "sliding_window": WINDOW, "final_logit_softcapping": 4.0, **ALTERNATING},
    ),
    "gpt2": Family("GPT2Config", base=GPT2_STYLE),
    "gpt_neox": Family("GPTNeoXConfig", {"rotary_pct": 0.5}),
    "phi": Family("PhiConfig", {"partial_rotary_factor": 0.5}),
    "phi3": Family("Phi3Config", {"sliding_window": WINDOW}),
    "olmo2": Family("Olmo2Config"),
    "olmo3": Family("Olmo3Config", {"sliding_window": WINDOW, **ALTERNATING}),
    "olmoe": Family("OlmoeConfig", {"num_experts": 4, "num_experts_per_tok": 2}),
    "gpt_oss": Family(
        "GptOssConfig",
        {
            "head_dim": 8,
            "sliding_window": WINDOW,
            **EXPERTS,
            **ALTERNATING,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "cohere": Family("CohereConfig", {"logit_scale": 0.3}),
    "cohere2": Family("Cohere2Config", {"logit_scale": 0.3, "sliding_window": WINDOW, **ALTERNATING}),
    "granite": Family(
        "GraniteConfig", {"logits_scaling": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5}
    ),
    "hyperclovax": Family("HyperCLOVAXConfig", {"logits_scaling": 2.0}),
    "starcoder2": Family("Starcoder2Config", {"sliding_window": WINDOW}),
    "opt": Family("OPTConfig", {"ffn_dim": 40, "word_embed_proj_dim": 32}),
    "glm4": Family("Glm4Config", {"head_dim": 8}),
    "exaone4": Family("Exaone4Config", {"sliding_window": WINDOW, **ALTERNATING}),
    "smollm3": Family("SmolLM3Config"),
    "deepseek_v3": Family(
        "DeepseekV3Config",
        {
            **NO_GROUPS,
            "moe_intermediate_size": 16,
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 12,
            "first_k_dense_replace": 1,
        },
    ),
}

REFUSED = {
    "mamba": (Family("MambaConfig"), "linear_attention layers"),
    "jamba": (Family("JambaConfig"), "linear_attention|mamba"),
    "qwen3_next": (Family("Qwen3NextConfig"), "linear_attention layers"),
    "lfm2": (Family("Lfm2Config", {"layer_types": ["conv", "full_attention"]}), "conv layers"),
    "falcon_h1": (Family("FalconH1Config"), "hybrid|recurrent"),
    "minimax": (Family("MiniMaxConfig"), "linear_attention layers"),
    "recurrent_gemma": (Family("RecurrentGemmaConfig"), "recurrent"),
    "llama4": (
        Family("Llama4TextConfig", {"head_dim": 8, "num_local_experts": 2, "attention_chunk_size": 8}),
        "chunked",
    ),
    "bloom": (
        Family("BloomConfig", base={"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 1, "n_head": 4}),
        "keeps its own 'eager' attention",
    ),
    "falcon": (Family("FalconConfig"), "keeps its own"),
    "gpt_neo": (
        Family(
            "GPTNeoConfig",
            base={
                "vocab_size": VOCABULARY,
                "hidden_size": 32,
                "num_layers": 2,
                "num_heads": 4,
                "attention_types": [[["global", "local"], 1]],
                "bos_token_id": 1,
                "eos_token_id": 2,
            },
        ),
        "keeps its own",
    ),
    "stablelm": (Family("StableLmConfig"), "does not hand keyword arguments down"),
    "nemotron": (Family("NemotronConfig"), "does not hand keyword arguments down"),
}
