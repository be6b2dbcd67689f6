"""The proof on the real weights that packed scoring equals ordinary scoring by the model as it was loaded."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from prefopt.data.packs.pack import pack
from prefopt.errors import ModelError
from prefopt.policy.head import head_of
from prefopt.policy.rope import reach_of
from prefopt.policy.wrappers import causal_model, class_of
from prefopt.types import IntArray, Preference, TokenizedGroup

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from prefopt.policy import Policy

_PROMPT, _ANSWER = 24, 16  # shortened for models with fewer positions
_LONGEST = 640
"""Most tokens of a sequence that is tried; a boundary further out would make eager attention dear."""
_BEFORE, _BEYOND = 4, 14  # tokens of answers that end at a boundary and behind it, both after the same prompt
_BOUNDARIES = ("sliding_window", "attention_chunk_size", "original_max_position_embeddings")
TOKEN_TOLERANCE = {torch.float64: 1e-4, torch.float32: 2e-3}
"""Per token, nats; in float64, too, transformers rounds its softmax and norms to float32."""
_HALF_TOLERANCE = 0.5  # |logit| up to 30 in bfloat16 is spaced by 0.125, and errors add up over layers
_HALF_FLOOR = 0.02


class Boundaries(NamedTuple):
    """Lengths at which a configuration says that something changes, by the name of the setting."""

    tried: dict[int, str]  # with sequences on both sides
    untried: dict[int, str]  # further out than sequences are tried


def boundaries_of(config: PretrainedConfig) -> Boundaries:
    """Return the boundaries of a model that sequences can cross."""
    text = config.get_text_config()
    most = _most_tokens(text)
    inside = {at: name for name, at in _named(text) if at > 1 and at + _BEYOND <= most}
    near = {at: name for at, name in inside.items() if at + _BEYOND <= _LONGEST}
    return Boundaries(near, {at: name for at, name in inside.items() if at not in near})


def describe_untried(config: PretrainedConfig) -> str | None:
    """Say which boundaries the self-check does not cross; None where there are none."""
    untried = boundaries_of(config).untried
    return ", ".join(f"not beyond {name} {at}" for at, name in sorted(untried.items())) or None


def _most_tokens(config: PretrainedConfig) -> int:
    """Return how long a sequence may be."""
    reach, positions = reach_of(config), getattr(config, "max_position_embeddings", None)
    ends = (positions or sys.maxsize, sys.maxsize if reach is None else reach.tokens)
    return max(2, min(ends))


def _named(config: PretrainedConfig) -> Iterator[tuple[str, int]]:
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [part for part in rope.values() if isinstance(part, dict)]
    for block in (vars(config), rope, *nested):
        for name in _BOUNDARIES:
            if isinstance(value := block.get(name), int):
                yield name, value


def compare_with_plain(policy: Policy, tolerance: float | None, seed: int) -> float:
    """Return the largest per-token difference between packed and ordinary scoring of random tokens.

    A row holds a short prompt with two answers and, for each boundary of the configuration, a prompt with
    one answer that ends before it and one that goes beyond.
    """
    core = causal_model(policy.model)
    weight: Tensor = core.get_input_embeddings().weight  # type: ignore[assignment]
    groups = list(_groups(core.config, weight, np.random.default_rng(seed)))
    with policy.as_loaded() as model:
        plain = [
            _score(model, group.prompts[0], answer, weight.device)
            for group in groups
            for answer in group.responses
        ]
    packed = policy(pack(groups).to(weight.device)).tokens
    device = weight.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    name = class_of(core).__name__
    worst = _judge(packed, plain, name, dtype, tolerance)
    if not policy.drops:
        _check_training(policy, groups[0], plain[0], name, dtype, tolerance)
    return worst


def _groups(config: PretrainedConfig, weight: Tensor, draw: np.random.Generator) -> Iterator[TokenizedGroup]:
    """Yield prompts of random tokens with two answers each."""
    text = config.get_text_config()
    limit = min(_most_tokens(text), _PROMPT + _ANSWER)
    # a weight that DeepSpeed spread over ranks is empty between two forwards
    vocabulary = min(weight.shape[0] or text.vocab_size, text.vocab_size)
    answer = min(_ANSWER, max(1, limit * 2 // 5))
    yield _group(draw, vocabulary, limit - answer, (answer, answer))
    for at in sorted(boundaries_of(config).tried):
        yield _group(draw, vocabulary, max(1, at - _BEFORE), (min(_BEFORE, at - 1), _BEYOND))


def _group(
    draw: np.random.Generator, vocabulary: int, prompt: int, answers: tuple[int, int]
) -> TokenizedGroup:
    ends = np.cumsum((0, prompt, *answers))
    ids = draw.integers(0, vocabulary, ends[-1], dtype=np.int32)
    first, *others = (ids[start:end] for start, end in pairwise(ends))
    return TokenizedGroup(
        prompts=(first,),
        responses=tuple(others),
        prompt_of=(0, 0),
        preferences=(Preference(0, 1),),
        row_id=0,
        origin="self-check",
    )


def _judge(
    packed: Tensor, plain: Sequence[Tensor], name: str, dtype: torch.dtype, tolerance: float | None
) -> float:
    allowed = TOKEN_TOLERANCE.get(dtype, _HALF_TOLERANCE) if tolerance is None else tolerance
    gaps = (packed.to(plain[0].dtype) - torch.cat(list(plain))).abs()
    parts = torch.split(gaps, [len(part) for part in plain])
    first, second = (float(part.mean()) for part in parts[:2])
    others = float(torch.cat(parts[2:]).mean()) if len(parts) > 2 else 0.0
    worst = float(gaps.max())
    # rounding strikes all answers alike; what leaks from one into another shows in the later ones only
    leaks = (
        tolerance is None and dtype not in TOKEN_TOLERANCE and max(second, others) > 4 * first + _HALF_FLOOR
    )
    # the comparison is this way round so that NaN fails it
    if leaks or not worst <= allowed:
        raise ModelError(
            f"model: {name} scores packed rows differently from separate ones, by {worst:.2g} nats a token at "
            f"worst and on average {first:.2g} in the first, {second:.2g} in the second answer ({dtype}, "
            f"{allowed:g} allowed). Choose another model."
        )
    return worst


def _check_training(
    policy: Policy,
    group: TokenizedGroup,
    plain: Tensor,
    name: str,
    dtype: torch.dtype,
    tolerance: float | None,
) -> None:
    """Refuse a model that scores otherwise while it trains, with all dropout off that is known."""
    allowed = TOKEN_TOLERANCE.get(dtype, _HALF_TOLERANCE) if tolerance is None else tolerance
    with policy.plain_attention("eager") as model:
        model.train()
        found = _score(model, group.prompts[0], group.responses[0], plain.device)
        model.eval()
    worst = float((found - plain).abs().max())
    if not worst <= allowed:
        raise ModelError(
            f"model: {name} scores differently in training mode, by {worst:.2g} nats a token ({dtype}, {allowed:g} "
            f"allowed), though its dropout is off: something in it is random. Choose another model."
        )


def _score(model: nn.Module, prompt: IntArray, answer: IntArray, device: torch.device) -> Tensor:
    ids = torch.from_numpy(np.concatenate([prompt, answer]).astype(np.int64)).to(device)[None]
    logits: Tensor = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    core = causal_model(model)
    rows = getattr(head_of(core), "out_features", logits.shape[-1])
    if logits.shape[-1] != rows:
        raise ModelError(
            f"model: {class_of(core).__name__} returns {logits.shape[-1]} logits a token, but its head makes {rows}, "
            f"so log-probs would be of another vocabulary. Choose another model."
        )
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide.log_softmax(-1).gather(-1, ids[0, len(prompt) :, None]).squeeze(-1)
