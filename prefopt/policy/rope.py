"""RoPE that turns every sequence of a forward by the longest one: exact up to a length, refused beyond it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn
from transformers import PretrainedConfig

from prefopt.errors import ModelError
from prefopt.types import Segments

_BY_POSITION = {
    "default",
    "linear",
    "yarn",
    "llama3",
    "proportional",
    "ntk_alpha",
    "mrope",
    "xdrope",
    "axial",
}
"""Kinds that turn a token by its own position alone."""
_BY_LONGEST = {"longrope", "dynamic"}
"""Kinds that pick their factors, or their base, by the longest position of the forward; others may, too."""
_GROWN = "original_inv_freq"
"""What ends the names under which rotary modules keep the frequencies that they started with."""


class Reach(NamedTuple):
    """How long the sequences of a forward may be so that none changes how another one is turned."""

    kind: str  # of RoPE
    tokens: int


def reach_of(config: PretrainedConfig) -> Reach | None:
    """Return the reach of a model; None where every token is turned by its own position alone."""
    text = config.get_text_config()
    found = [
        Reach(str(kind), limit)
        for rope in _blocks(text)
        if (kind := rope.get("rope_type", rope.get("type", "default"))) not in _BY_POSITION
        for limit in _limits(str(kind), rope, text)
    ]
    return min(found, key=lambda reach: reach.tokens, default=None)


def _blocks(config: PretrainedConfig) -> Iterator[Mapping[str, Any]]:
    """Yield the RoPE settings of a model, of each kind of layer where they differ."""
    block = getattr(config, "rope_parameters", None)
    if isinstance(block, Mapping):
        yield block
        yield from (part for part in block.values() if isinstance(part, Mapping))


def _limits(kind: str, rope: Mapping[str, Any], config: PretrainedConfig) -> Iterator[int]:
    """Yield the lengths at which RoPE of this kind may change; 0 where the configuration names none."""
    own = rope.get("original_max_position_embeddings")
    trained = own or getattr(config, "original_max_position_embeddings", None)
    largest = getattr(config, "max_position_embeddings", None)
    wanted = [trained or largest] if kind == "longrope" else [trained, largest]
    limits = [int(limit) for limit in wanted if limit]
    yield from limits or [0]


def check_reach(name: str, reach: Reach | None, longest: int) -> None:
    """Refuse sequences that would change how others in their row are turned.

    Args:
        name: of the model, for the message.
        reach: of the model.
        longest: tokens of the longest sequence, prompt and answer together.

    Raises:
        ModelError: says how long sequences may be.
    """
    if reach is None or longest <= reach.tokens:
        return
    if not reach.tokens:
        raise ModelError(f"model: {name} has a RoPE of unknown kind, '{reach.kind}'. Choose another model.")
    turns = "turns" if reach.kind in _BY_LONGEST else "may turn"
    raise ModelError(
        f"model: {name} {turns} positions by the longest sequence of a row ({reach.kind} RoPE) once that has more "
        f"than {reach.tokens} tokens, but the longest prompt with its answer has {longest}, so scores would depend "
        f"on what shares the row. Set batch.max_tokens (--max-tokens for score) to {reach.tokens} or less."
    )


def longest_path(segments: Segments) -> int:
    """Return the tokens of the longest sequence of a row, read on the host."""
    ends: list[int] = []
    for length, parent in zip(segments.lengths, segments.parents, strict=True):
        ends.append(length + (ends[parent] if parent >= 0 else 0))
    return max(ends)


def forget_lengths(model: nn.Module) -> None:
    """Turn positions as a model just loaded does, whatever lengths it has seen since."""
    for module in model.modules():
        for prefix in _grown(module):
            start = getattr(module, f"{prefix}{_GROWN}")
            now = getattr(module, f"{prefix}inv_freq")
            module.register_buffer(f"{prefix}inv_freq", start.to(now.device).clone(), persistent=False)
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)


def _grown(module: nn.Module) -> list[str]:
    """Return the kinds of layers whose frequencies a rotary module may let grow, as prefixes of names."""
    kinds = getattr(module, "rope_type", None)
    if not hasattr(module, "original_max_seq_len"):
        return []
    by_prefix = (
        {f"{layer}_": kind for layer, kind in kinds.items()} if isinstance(kinds, dict) else {"": kinds}
    )
    return [
        prefix
        for prefix, kind in by_prefix.items()
        if "dynamic" in str(kind) and hasattr(module, f"{prefix}{_GROWN}")
    ]
