"""Every causal type of the installed transformers, tiny: scored exactly, refused in one line, or not built.

What is expected of each stands in ``causal_types.json``; ``python tests/causal_types.py`` writes it anew.
"""

from __future__ import annotations

import inspect
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from model_families import louden
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from prefopt.data.packs.pack import pack
from prefopt.errors import PrefoptError
from prefopt.policy import Policy, check_supported
from prefopt.types import Preference, TokenizedGroup

TABLE = Path(__file__).with_suffix(".json")
LARGEST = 4_000_000
"""Parameters beyond which a model is not tiny."""
VOCABULARY, WINDOW = 89, 7
NATS, GRADIENT = 2e-5, 2e-5
"""Largest difference of a log-prob, and of the DPO gradient relative to its norm, in float32."""

SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size",), VOCABULARY),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "emb_dim", "embedding_size"), 32),
    **dict.fromkeys(("word_embed_proj_dim", "embedding_dim", "output_embedding_size"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "dff", "d_inner"), 40),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim", "dim_ff", "shared_intermediate_size"), 40),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 2),
    **dict.fromkeys(("encoder_layers", "num_decoder_layers", "num_encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 128),
    **dict.fromkeys(("model_max_length", "max_sequence_length"), 128),
    **dict.fromkeys(("head_dim", "dim_head", "d_head", "attention_head_dim"), 8),
    **dict.fromkeys(("sliding_window", "window_size", "attention_window_size"), WINDOW),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "n_shared_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("expert_ffn_hidden_size", "moe_shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("rotary_dim",), 4),
    **dict.fromkeys(("type_vocab_size",), 2),
    **dict.fromkeys(("attn_logit_softcapping",), 2.0),
    **dict.fromkeys(("final_logit_softcapping",), 3.0),
    **dict.fromkeys(("bos_token_id",), 1),
    **dict.fromkeys(("eos_token_id", "decoder_start_token_id", "sep_token_id"), 2),
    **dict.fromkeys(("pad_token_id",), 0),
}
"""What each setting is where a configuration has it."""

BY_LAYER = {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8}
PER_LAYER_INPUT = {"hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": VOCABULARY}
PART = {
    **dict.fromkeys(("hidden_size", "hidden_size_global"), 32),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads"), 4),
    "vocab_size": VOCABULARY,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "head_dim": 8,
}
OWN: dict[str, dict[str, Any]] = {
    "bamba": MAMBA,
    "blt": {f"{part}_config": PART for part in ("patcher", "encoder", "decoder", "global")}
    | {"encoder_hash_byte_group_vocab": 50},
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4}
            for kind in ("sliding_attention", "full_attention")
        }
    },
    "dbrx": {
        "ffn_config": {"ffn_hidden_size": 40, "moe_num_experts": 4, "moe_top_k": 2, "moe_jitter_eps": 0.1},
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
    },
    "dots3_note": {"text_config": None},
    "dots3_note_text": {"num_key_value_heads": 4},
    "gemma3n_text": {**PER_LAYER_INPUT, **BY_LAYER, "num_kv_shared_layers": 2, "intermediate_size": [40] * 4}
    | {"laurel_rank": 4, "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0]},
    "gemma4_text": {**PER_LAYER_INPUT, "global_head_dim": 8, "layer_types": BY_LAYER["layer_types"][:2]}
    | {"num_experts": None, "moe_intermediate_size": None},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {**MAMBA, "layer_types": ["mamba", "attention"]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "reformer": {"is_decoder": True, "axial_pos_shape": [8, 16], "axial_pos_embds_dim": [16, 16]}
    | {"num_buckets": 4},
    "roc_bert": {"pronunciation_vocab_size": 9, "shape_vocab_size": 9}
    | {"pronunciation_embed_dim": 8, "shape_embed_dim": 8},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["mamba", "hybrid"]},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "hybrid_layer_ids": [1]},
    "zaya": {"num_experts_per_tok": 1},
}
"""What single types need besides; None leaves a setting at its default."""

THETA = {"rope_theta": 1e4}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, **THETA}
TURNED = {"rope_theta": 1e4, "factor": 4.0}
TRAINED = {"original_max_position_embeddings": 16}
"""Sequences have 4 to 26 tokens."""
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "phi3, longrope": ("phi3", {"rope_parameters": LONG, **TRAINED}),
    "phi3, longrope never left": (
        "phi3",
        {"rope_parameters": LONG, "original_max_position_embeddings": 64},
    ),
    "llama, dynamic": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", **TURNED}, "max_position_embeddings": 16},
    ),
    "llama, dynamic never left": ("llama", {"rope_parameters": {"rope_type": "dynamic", **TURNED}}),
    "llama, linear": ("llama", {"rope_parameters": {"rope_type": "linear", **TURNED}}),
    "llama, yarn": ("llama", {"rope_parameters": {"rope_type": "yarn", **TURNED, **TRAINED}}),
    "llama, llama3": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                **TURNED,
                **TRAINED,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            }
        },
    ),
    "gemma3_text, longrope in full layers": (
        "gemma3_text",
        {
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", **THETA},
                "full_attention": {**LONG, **TRAINED},
            },
        },
    ),
    "gemma4_text, shared keys": (
        "gemma4_text",
        {**BY_LAYER, "num_kv_shared_layers": 2},
    ),
    "granitemoehybrid, attention alone": ("granitemoehybrid", {"layer_types": ["attention", "attention"]}),
    "lfm2, attention alone": ("lfm2", {"layer_types": ["full_attention", "full_attention"]}),
    "phimoe, no window": (
        "phimoe",
        {"sliding_window": None, "rope_parameters": {"rope_type": "default", **THETA}},
    ),
    "bert, decoder": ("bert", {"is_decoder": True}),
}
"""Types once more with settings that change which layers they have or how they turn positions."""


def types() -> list[str]:
    """Return every causal type of the installed transformers, then the variants of those that it has."""
    names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return [*names, *(name for name, (kind, _) in VARIANTS.items() if kind in names)]


def config_of(name: str) -> Any:
    """Return the tiny configuration of a type or a variant."""
    kind, own = VARIANTS.get(name, (name, {}))
    config_class = CONFIG_MAPPING[kind]
    usual = vars(config_class())
    known = {*inspect.signature(config_class.__init__).parameters, *usual}
    settings = {key: value for key, value in SIZES.items() if key in known}
    if "kv_lora_rank" in known:  # no groups in latent attention
        settings["num_key_value_heads"] = 4
    layers = usual.get("layer_types")
    if isinstance(layers, list) and len(set(layers)) == 2:  # which a pattern of many layers would not reach
        settings["layer_types"] = sorted(set(layers), reverse=True)
    if "text_config" in known and "text_config" not in OWN.get(kind, {}):
        settings["text_config"] = config_of(config_class().get_text_config().model_type).to_dict()
    settings |= OWN.get(kind, {}) | own
    return config_class(**{key: value for key, value in settings.items() if value is not None})


def outcome(name: str) -> str:
    """Say what becomes of a type: ``exact``, ``refused: …``, ``not built: …``, or else ``WRONG`` or ``CRASHED``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a library deprecates is no outcome
        return _outcome(name)


def _outcome(name: str) -> str:
    try:
        config = config_of(name)
    except Exception as error:  # noqa: BLE001  whatever a configuration makes of such sizes
        return f"not built: {type(error).__name__}: {one_line(error)}"
    try:
        check_supported(config)
    except PrefoptError as error:
        return f"refused: {one_line(error)}"
    try:
        model = build(config)
        wanted = truth(model)
    except Exception as error:  # noqa: BLE001  whatever it raises is a finding
        return f"not built: {type(error).__name__}: {one_line(error)}"
    try:
        return judge(model, wanted)
    except PrefoptError as error:
        return f"refused: {one_line(error)}"
    except Exception as error:  # noqa: BLE001  whatever it raises is a finding
        return f"CRASHED: {type(error).__name__}: {one_line(error)}"


def one_line(error: Exception) -> str:
    """Return the words of an error, numbers left out."""
    return re.sub(r"\b\d[\d.e+-]*", "#", " ".join(str(error).split()))[:160]


def build(config: Any) -> Any:
    """Build a model whose weights are large enough for its log-probs to tell contexts apart."""
    make: Any = AutoModelForCausalLM.from_config
    with torch.device("meta"):
        size = sum(p.numel() for p in make(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size / 1e6:.0f} million parameters")
    torch.manual_seed(0)
    model = make(config, attn_implementation="eager").float().eval()
    return louden(model, 0.2)


def groups() -> list[TokenizedGroup]:
    """Return three prompts with seven answers, on both sides of the window."""
    draw = np.random.default_rng(0)

    def ids(count: int) -> Any:
        return draw.integers(3, VOCABULARY, count, dtype=np.int32)

    return [
        TokenizedGroup(
            prompts=(ids(prompt),),
            responses=tuple(map(ids, answers)),
            prompt_of=(0,) * len(answers),
            preferences=tuple(Preference(0, i) for i in range(1, len(answers))),
            row_id=row,
            origin=f"row {row}",
        )
        for row, (prompt, answers) in enumerate([(14, (9, 12, 3)), (5, (4, 11)), (2, (2, 6))])
    ]


def truth(model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    """Return what the plain model says of every answer, each in a forward of its own, and the DPO gradient."""
    logps = [plain_logps(model, group.prompts[0], answer) for group in groups() for answer in group.responses]
    return torch.cat(logps).detach(), gradient(model, logps)


def plain_logps(model: nn.Module, prompt: Any, answer: Any) -> Tensor:
    ids = torch.from_numpy(np.concatenate([prompt, answer]).astype(np.int64))[None]
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    found: Tensor = logits.log_softmax(-1).gather(-1, ids[0, len(prompt) :, None]).squeeze(-1)
    assert torch.isfinite(found).all(), "the plain model's log-probs are not finite"
    return found


def gradient(model: nn.Module, logps: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the gradient of DPO at beta 0.1 against log-probs of zero."""
    sums, first, loss = [part.sum() for part in logps], 0, torch.zeros(())
    for group in groups():
        for pair in group.preferences:
            margin = sums[first + pair.chosen] - sums[first + pair.rejected]
            loss = loss - nn.functional.logsigmoid(0.1 * margin)
        first += len(group.responses)
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def judge(model: nn.Module, wanted: tuple[Tensor, dict[str, Tensor]]) -> str:
    """Score one mixed row as training does and hold it against the truth."""
    policy = Policy(model)
    policy.self_check()
    model.train()
    found = policy(pack(groups()))
    gap = float((found.tokens.detach() - wanted[0]).abs().max())
    grads = gradient(model, found.tokens.split(list(found.lengths)))
    size = sum(float(part.square().sum()) for part in wanted[1].values()) ** 0.5
    away = (
        sum(
            float((grads.get(name, torch.zeros(())) - part).square().sum())
            for name, part in wanted[1].items()
        )
        ** 0.5
    )
    if not (gap <= NATS and away <= GRADIENT * size and grads.keys() == wanted[1].keys()):
        return f"WRONG: {gap:.1e} nats, gradient {away / size:.1e}"
    return "exact"


def table() -> dict[str, Any]:
    """Return the table of outcomes, and the transformers that it is of."""
    return dict(json.loads(TABLE.read_text(encoding="utf-8")))


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    found = {name: outcome(name) for name in types()}
    text = json.dumps({"transformers": transformers.__version__, "outcomes": found}, indent=1)
    TABLE.write_text(f"{text}\n", encoding="utf-8")
