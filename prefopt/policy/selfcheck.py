"""The proof on the real weights that packed scoring equals ordinary scoring."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from prefopt.data.packs.pack import pack
from prefopt.errors import ModelError
from prefopt.policy.wrappers import causal_model, class_of
from prefopt.types import IntArray, Preference, TokenizedGroup

if TYPE_CHECKING:
    from prefopt.policy import Policy

_PROMPT, _ANSWER = 24, 16  # shortened for models with fewer positions
TOKEN_TOLERANCE = {torch.float64: 1e-4, torch.float32: 2e-3}
"""Per token, nats; in float64, too, transformers rounds its softmax and norms to float32."""
_HALF_TOLERANCE = 0.5  # |logit| up to 30 in bfloat16 is spaced by 0.125, and errors add up over layers
_HALF_FLOOR = 0.02


def compare_with_plain(policy: Policy, tolerance: float | None, seed: int) -> float:
    """Return the largest per-token difference between packed and ordinary scoring of random tokens."""
    core = causal_model(policy.model)
    weight: Tensor = core.get_input_embeddings().weight  # type: ignore[assignment]
    config = core.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None) or _PROMPT + _ANSWER
    answer_length = min(_ANSWER, max(1, limit * 2 // 5))
    prompt_length = min(_PROMPT, limit - answer_length)
    # a weight that DeepSpeed spread over ranks is empty between two forwards
    vocabulary = min(weight.shape[0] or config.vocab_size, config.vocab_size)
    ids = np.random.default_rng(seed).integers(
        0, vocabulary, prompt_length + 2 * answer_length, dtype=np.int32
    )
    prompt, *answers = np.split(ids, [prompt_length, prompt_length + answer_length])
    group = TokenizedGroup(
        prompts=(prompt,),
        responses=tuple(answers),
        prompt_of=(0, 0),
        preferences=(Preference(0, 1),),
        row_id=0,
        origin="self-check",
    )
    packed = policy(pack([group]).to(weight.device)).tokens
    with policy.plain_attention("eager"):
        plain = torch.cat([_score(policy.model, prompt, answer, weight.device) for answer in answers])
    device = weight.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return _judge(packed, plain, class_of(core).__name__, dtype, tolerance)


def _judge(packed: Tensor, plain: Tensor, name: str, dtype: torch.dtype, tolerance: float | None) -> float:
    allowed = TOKEN_TOLERANCE.get(dtype, _HALF_TOLERANCE) if tolerance is None else tolerance
    gaps = (packed.to(plain.dtype) - plain).abs()
    first, second = (float(half.mean()) for half in gaps.view(2, -1))
    worst = float(gaps.max())
    # rounding strikes both answers alike; what leaks from one into the other shows in the second only
    leaks = tolerance is None and dtype not in TOKEN_TOLERANCE and second > 4 * first + _HALF_FLOOR
    # the comparison is this way round so that NaN fails it
    if leaks or not worst <= allowed:
        raise ModelError(
            f"model: {name} scores packed rows differently from separate ones, by {worst:.2g} nats a token at "
            f"worst and on average {first:.2g} in the first, {second:.2g} in the second answer ({dtype}, "
            f"{allowed:g} allowed). Choose another model."
        )
    return worst


def _score(model: nn.Module, prompt: IntArray, answer: IntArray, device: torch.device) -> Tensor:
    ids = torch.from_numpy(np.concatenate([prompt, answer]).astype(np.int64)).to(device)[None]
    logits: Tensor = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide.log_softmax(-1).gather(-1, ids[0, len(prompt) :, None]).squeeze(-1)
