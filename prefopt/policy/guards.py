"""What prefopt refuses to train, each with one line that says why: sharing a prompt must be exact."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig

from prefopt.errors import ModelError

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
_BY_SEQUENCE = {
    "LILY": "averages its experts over all tokens of a row",
    "POLY": "picks its skills by the row's task",
    "SHADOW": "runs a second model over the row",
    "XLORA": "weighs its adapters by a forward of its own over the row",
}
"""Kinds of adapters of peft whose effect on a token depends on other tokens."""
_MIXERS = re.compile(r"Mamba|Rwkv|DeltaNet|ShortConv|LinearAttention|LightningAttention|RecurrentBlock|xLSTM")
_POSITIONS = re.compile(r"^w?pe$|^w?pos|position")


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
    is_told = False
    for pattern in _PATTERNS:
        kinds = getattr(config, pattern, None)
        if not isinstance(kinds, (list, tuple)):
            continue
        foreign = sorted({str(kind) for kind in kinds} - _SHAREABLE)
        if foreign:
            raise ModelError(_mixer_message(name, f"{', '.join(foreign)} layers"))
        is_told |= len(kinds) == getattr(config, "num_hidden_layers", None)
    # sizes of layers that none of the layers is, where each is told
    for key in () if is_told else _RECURRENT_KEYS:
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
    rows = _rows(model, head)
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


def check_ids(model: nn.Module, head: nn.Module, ids: Tensor) -> None:
    """Refuse token ids that a model has no weights for, where they lie on the host; a GPU would be waited for.

    Raises:
        ModelError: names the id.
    """
    rows = _rows(model, head)
    # a weight that DeepSpeed spread over ranks is empty between two forwards
    if ids.device.type != "cpu" or not rows:
        return
    least, largest = (int(end) for end in ids.aminmax())
    if least < 0 or largest >= rows:
        raise ModelError(
            f"model: {type(model).__name__} knows the token ids 0 to {rows - 1}, but a batch holds "
            f"{largest if largest >= rows else least}. Use the tokenizer that belongs to the model."
        )


def _rows(model: nn.Module, head: nn.Module) -> int:
    """Return how many token ids both ends of a model know."""
    tables: list[Any] = [model.get_input_embeddings(), head]  # type: ignore[operator]
    return min(int(table.weight.shape[0]) for table in tables)


def check_adapters(model: nn.Module) -> None:
    """Refuse adapters that add tokens of their own, or treat a token by what else stands in its row.

    Raises:
        ModelError: names the adapter.
    """
    for name, config in getattr(model, "peft_config", {}).items():
        if getattr(config, "is_prompt_learning", False):
            raise ModelError(
                f"model: adapter '{name}' learns virtual prompt tokens, which cannot be packed. Use LoRA."
            )
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        how = "switches on at tokens of its own (alora_invocation_tokens)"
        if getattr(config, "alora_invocation_tokens", None) is None:
            how = _BY_SEQUENCE.get(kind, "")
        if how:
            raise ModelError(
                f"model: adapter '{name}' ({kind}) {how}, so in a packed row a score would depend on what shares it. "
                f"Use LoRA."
            )
