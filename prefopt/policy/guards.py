"""What prefopt refuses to train, each with one line that says why: sharing a prompt must be exact."""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from prefopt.errors import ModelError, RecipeError

_SHAREABLE = {"full_attention", "sliding_attention", "attention"}
_PATTERNS = ("layer_types", "layers_block_type", "block_types", "attn_type_list")
"""Where configurations say what each layer mixes tokens with."""
_RECURRENT_KEYS = (
    "hybrid_override_pattern",
    "full_attn_idxs",
    "mamba_d_state",
    "ssm_state_size",
    "mamba_d_conv",
    "conv_L_cache",
    "linear_conv_kernel_dim",
    "lru_width",
    "linear_attn_config",
    "wkv_hidden_size",
)
_OWN_MASKS = {"doge": "it builds its own attention mask", "diffusion_gemma": "it is not causal"}
_OTHER_TASKS = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
    "ForMaskedLM",
    "DoubleHeadsModel",
)
_MIXERS = re.compile(r"Mamba|Rwkv|DeltaNet|ShortConv|LinearAttention|LightningAttention|RecurrentBlock|xLSTM")
_DROPOUT = re.compile(r"drop(out|_prob|_rate)?$|pdrop$|dropout_prob$|layerdrop$|jitter_noise$|^dropout")
_ATTENTION_DROPOUT = re.compile(r"att(entio)?n.*drop")
_POSITIONS = re.compile(r"^w?pe$|^w?pos|position")
_ADAPTER_DROPOUT = "lora_dropout"
"""What peft calls the modules that drop inputs of LoRA."""


def check_supported(config: PretrainedConfig) -> None:
    """Refuse a checkpoint that is no plain causal language model with ordinary attention.

    Raises:
        ModelError: one line that names the architecture and the reason.
    """
    name = (config.architectures or [config.model_type])[0]
    if config.is_encoder_decoder:
        raise ModelError(f"model: {name} is an encoder-decoder. Choose a causal language model.")
    for part in ("vision_config", "audio_config", "speech_config"):
        if getattr(config, part, None) is not None:
            kind = part.split("_", maxsplit=1)[0]
            raise ModelError(
                f"model: {name} has a {kind} tower, which is not supported. Choose a text-only causal model."
            )
    if name.endswith(_OTHER_TASKS):
        raise ModelError(
            f"model: {name} has no language model head to score answers with. Choose a causal model."
        )
    text = config.get_text_config()
    if text.model_type in _OWN_MASKS:
        raise ModelError(
            f"model: {name} cannot share prompts: {_OWN_MASKS[text.model_type]}. Choose another model."
        )
    _check_layers(name, text)


def _check_layers(name: str, config: PretrainedConfig) -> None:
    for pattern in _PATTERNS:
        kinds = getattr(config, pattern, None)
        foreign = (
            sorted({str(kind) for kind in kinds} - _SHAREABLE) if isinstance(kinds, (list, tuple)) else []
        )
        if foreign:
            raise ModelError(_mixer_message(name, f"{', '.join(foreign)} layers"))
    for key in _RECURRENT_KEYS:
        if getattr(config, key, None):
            raise ModelError(_mixer_message(name, f"recurrent or convolutional layers ({key})"))
    if getattr(config, "attention_chunk_size", None):
        raise ModelError(_mixer_message(name, "chunked attention (attention_chunk_size)"))


def _mixer_message(name: str, what: str) -> str:
    return (
        f"model: {name} has {what}, through which an answer would see the tokens packed before it. "
        f"Choose a model with full or sliding-window attention only."
    )


def check_modules(model: nn.Module) -> None:
    """Refuse modules that mix tokens other than by attention, whatever the configuration says.

    Raises:
        ModelError: names the first such module.
    """
    for path, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, (nn.Conv1d, nn.RNNBase)) or _MIXERS.search(kind):
            raise ModelError(_mixer_message(type(model).__name__, f"a {kind} ({path})"))


def num_positions(model: nn.Module) -> int | None:
    """Return how many positions a model's tables hold; None where positions are computed, as by RoPE."""
    rows: list[int] = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding) and _POSITIONS.search(path.rsplit(".", maxsplit=1)[-1]):
            rows.append(module.num_embeddings - getattr(module, "offset", 0))
    for path, table in model.named_buffers():
        if table.ndim == 2 and _POSITIONS.search(path.rsplit(".", maxsplit=1)[-1]) and table.shape[0] > 1:
            rows.append(table.shape[0])
    return min(rows, default=None)


def check_tables(model: nn.Module, head: nn.Module, largest_id: int, longest: int) -> None:
    """Refuse data with tokens or positions that a model has no weights for; see ``Policy.check_fits``."""
    name = type(model).__name__
    tables: list[Any] = [model.get_input_embeddings(), head]  # type: ignore[operator]
    rows = min(table.weight.shape[0] for table in tables)
    if largest_id >= rows:
        raise ModelError(
            f"model: {name} knows the token ids 0 to {rows - 1}, but the tokenizer gives the data {largest_id}. "
            f"Use the tokenizer that belongs to the model, or a model with a larger embedding."
        )
    positions = num_positions(model)
    if positions is not None and longest > positions:
        raise ModelError(
            f"model: {name} has {positions} positions, but the longest prompt with its answer has {longest} "
            f"tokens. Set batch.max_tokens to {positions} or less."
        )


def disable_dropout(model: nn.Module, *, adapters: bool = True) -> list[tuple[PretrainedConfig, str, float]]:
    """Switch off every kind of dropout: modules, LoRA's, and the functional one of attention.

    Attention reads its probability from a number on the module or in the configuration, which
    putting ``nn.Dropout`` modules to zero does not reach; router jitter likewise.

    Args:
        model: changed in place.
        adapters: False spares the dropout of LoRA's inputs.

    Returns:
        What the configurations said before: (configuration, name, value) for each that was changed.
    """
    before: list[tuple[PretrainedConfig, str, float]] = []
    for path, owner, name, value in _dropouts(model):
        if not adapters and _ADAPTER_DROPOUT in path.split("."):
            continue
        if isinstance(owner, dict):
            owner[name] = 0.0
        else:
            setattr(owner, name, 0.0)
        if isinstance(owner, PretrainedConfig):
            before.append((owner, name, value))
    return before


def has_dropout(model: nn.Module) -> bool:
    """Tell whether two passes in training mode may differ."""
    return bool(_dropouts(model))


def check_attention_dropout(model: nn.Module) -> None:
    """Refuse dropout of attention weights, which packed attention does not apply.

    Raises:
        RecipeError: names the setting.
    """
    for path, _, name, value in _dropouts(model):
        name = path.rsplit(".", maxsplit=1)[-1] if name == "p" else name
        if _ATTENTION_DROPOUT.search(name):
            raise RecipeError(
                f"model.dropout: {name} of {type(model).__name__} is {value:g}, but packed attention drops "
                f"nothing. Set model.dropout: false, or {name} to 0 in the model's config.json."
            )


def _dropouts(model: nn.Module) -> list[tuple[str, Any, str, float]]:
    """Return every dropout that is on: path of its module, its owner, its name there, probability."""
    found: list[tuple[str, Any, str, float]] = []
    configs: dict[int, tuple[str, Any]] = {}
    for path, module in model.named_modules():
        # adapter libraries have dropout modules of their own kind
        if "Dropout" in type(module).__name__ and isinstance(getattr(module, "p", None), float):
            found.append((path, module, "p", module.p))
        for name, value in vars(module).items():
            if isinstance(value, float) and _DROPOUT.search(name):
                found.append((path, module, name, value))
            elif isinstance(value, dict) and _DROPOUT.search(name):
                found += [(path, value, key, p) for key, p in value.items() if isinstance(p, float)]
        config = getattr(module, "config", None)
        if isinstance(config, PretrainedConfig):
            configs.setdefault(id(config), (path, config))
    for path, config in configs.values():
        found += [
            (path, config, name, value)
            for name, value in vars(config).items()
            if isinstance(value, float) and _DROPOUT.search(name)
        ]
    return [entry for entry in found if entry[-1]]


def check_adapters(model: nn.Module) -> None:
    """Refuse adapters that add tokens of their own."""
    for name, config in getattr(model, "peft_config", {}).items():
        if getattr(config, "is_prompt_learning", False):
            raise ModelError(
                f"model: adapter '{name}' learns virtual prompt tokens, which cannot be packed. Use LoRA."
            )
