"""The attention function that transformers calls in every layer while a packed batch is scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from prefopt.errors import ModelError, RecipeError
from prefopt.kernels import tree_attention
from prefopt.kernels.prefix_attention.backends import BACKENDS
from prefopt.kernels.prefix_attention.choice import machine_of, problem_of, resolve_backend
from prefopt.kernels.prefix_attention.opaque import opaque_attention
from prefopt.types import Segments

# transformers lazily imports flash-attn for names with "flash" and reads "/" as a hub kernel
PACKED_ATTENTION = "prefopt_packed"
LAYOUT_ARGUMENT = "packed_layout"
"""The model keyword argument that carries the layout down to every attention layer."""


@dataclass(slots=True)
class AttentionLayout:
    """Carry one batch's segments through the model, count the layers they reach and note what served them."""

    segments: Segments
    impl: str
    table: Tensor | None = None  # the segments once more, for compiled layers
    used: dict[str, str] = field(default_factory=dict)  # back-end -> why auto took no faster one
    num_layers: int = 0
    num_windows: int = 0


class MissingLayoutError(ModelError):
    """An attention layer was called without the packed layout."""


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend within the packed layout; the signature is that of transformers' attention interface."""
    layout: AttentionLayout | None = kwargs.get(LAYOUT_ARGUMENT)
    if layout is None:
        raise MissingLayoutError(
            f"model: {type(module).__name__} was called without a packed batch. Score through "
            f"prefopt.Policy, or use the model inside policy.plain_attention()."
        )
    if dropout:
        raise ModelError(
            f"model: attention dropout is {dropout:g}, which packed attention does not apply. "
            f"Set it to 0 in the model's config.json, or leave model.dropout at false."
        )
    is_causal = kwargs.get("is_causal", getattr(module, "is_causal", True))
    if is_causal is False:
        raise ModelError(
            f"model: {type(module).__name__} attends to later tokens, too, so its log-probs are none of a causal "
            f"model. Choose another model."
        )
    if kwargs.get("position_bias") is not None:
        raise ModelError(f"model: {type(module).__name__} uses attention biases that packing cannot honour.")
    rule: dict[str, Any] = {"window": sliding_window, "softcap": softcap, "sinks": s_aux}
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if torch.compiler.is_compiling():
        # neither the segments nor a count may be read here: the graph would be good for this batch only
        assert layout.table is not None, "a compiled layer got a batch that was not laid out for it"
        out = opaque_attention(query, key, value, layout.table, scaling=scale, impl=layout.impl, **rule)
        return out, None
    layout.num_layers += 1
    layout.num_windows += sliding_window is not None
    problem = problem_of(query, key, value, layout.segments, **rule)
    choice = resolve_backend(layout.impl, problem, machine_of(query.device), "model.attention:")
    layout.used[choice.name] = choice.why
    out = tree_attention(query, key, value, layout.segments, scaling=scale, impl=choice.name, **rule)
    return out, None


def describe_back_ends(used: dict[str, str]) -> str:
    """Say which back-ends served, and why no faster ones did."""
    notes = {name: BACKENDS[name].variant() or why for name, why in used.items()}
    return " and ".join(f"{name} ({note})" if note else name for name, note in notes.items())


register_attention: Callable[[str, Callable[..., Any]], None] = AttentionInterface.register
register_attention(PACKED_ATTENTION, packed_attention)


def use_attention(model: PreTrainedModel, name: str) -> None:
    """Make every layer of ``model`` attend by the function registered under ``name``.

    Raises:
        ModelError: the model does not go through transformers' attention interface.
    """
    model.set_attn_implementation(name)
    for module in model.modules():
        used = module.config._attn_implementation if isinstance(module, PreTrainedModel) else name
        if used != name:
            raise ModelError(
                f"model: {type(model).__name__} keeps its own '{used}' attention instead of '{name}', so "
                f"packed rows cannot be scored. Choose a model that supports transformers' attention interface."
            )


def check_packed(model: PreTrainedModel) -> None:
    """Refuse to score packed rows while a model has its ordinary attention back.

    Raises:
        RecipeError: says which block to leave.
    """
    if model.config._attn_implementation != PACKED_ATTENTION:
        raise RecipeError(
            "policy: packed rows are scored inside plain_attention(), where answers would see each other. Leave its "
            "block before, in a source of steps before each yield."
        )


def check_coverage(layout: AttentionLayout, config: PretrainedConfig, name: str) -> None:
    """Refuse a model of which some layer attended without the layout, or without its window.

    Raises:
        ModelError: says how many layers were reached.
    """
    expected = int(config.num_hidden_layers)
    if layout.num_layers < expected:
        raise ModelError(
            f"model: only {layout.num_layers} of {expected} layers of {name} use the packed attention. "
            f"Choose another model."
        )
    kinds = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None) or ()
    windows = sum(kind in ("sliding_attention", "local") for kind in kinds)
    if not kinds and getattr(config, "sliding_window", None):
        windows = 1
    if layout.num_windows < windows:
        raise ModelError(
            f"model: {windows} layers of {name} have a sliding window but {layout.num_windows} pass it on, "
            f"so long rows would be scored wrongly. Choose another model."
        )
