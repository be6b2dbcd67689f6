"""The usual way beside prefopt's own: padded rows and all logits, put in so that all else stays the same."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prefopt.kernels import TokenLogps, token_logps
from prefopt.policy import Policy, RowStates, head
from prefopt.types import PackedBatch, SeqLogps


class PaddedPolicy(Policy):
    """Score a batch the usual way, so that all but the layout stays the same."""

    def __init__(self, model: nn.Module) -> None:
        # of a policy, only its model's ways: attention stays that of transformers
        self._model = model
        self.drops, self.compiled = False, None

    def __call__(
        self, batch: PackedBatch, *, stats: Collection[str] = (), against: RowStates | None = None
    ) -> SeqLogps:
        assert not stats and against is None, "no loss of the benchmark reads a statistic"
        ids, mask, at = unpack(batch)
        model: Any = self.model
        causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        trunk = causal.model(input_ids=ids, attention_mask=mask, use_cache=False)
        hidden: Tensor = trunk.last_hidden_state.flatten(0, 1)  # [S * L, D]
        # looked up there, where a contender may have put another head
        score: Callable[..., TokenLogps] = vars(head)["token_logps"]
        scored = score(hidden, causal.lm_head.weight, batch.target_ids, rows=at)
        return SeqLogps(tokens=scored.logps, lengths=batch.lengths)


def unpack(batch: PackedBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Lay every answer of a packed row out behind its own prompt.

    Returns:
        Ids and attention mask [S, L], padded on the right, and the flat positions [M] that score ``target_ids``.
    """
    segments = batch.segments
    spans = list(zip(segments.starts, segments.lengths, strict=True))
    paths = [(spans[parent], spans[i]) for i, parent in enumerate(segments.parents) if parent >= 0]
    width = max(before[1] + own[1] for before, own in paths)
    ids = batch.input_ids.new_zeros(len(paths), width)
    mask = torch.zeros_like(ids)
    at: list[Tensor] = []
    for row, path in enumerate(paths):
        (prompt, own) = path
        tokens = torch.cat([batch.input_ids[low : low + count] for low, count in path])
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        first = row * width + prompt[1] - 1
        at.append(torch.arange(first, first + own[1], device=ids.device))
    return ids, mask, torch.cat(at)


@contextmanager
def head_as(kind: str) -> Iterator[None]:
    """Let policies score by one head op for the block; ``Policy`` itself has no such setting."""
    if kind == "auto":
        yield
        return
    op = all_logits if kind == "logits" else partial(token_logps, impl=kind)
    with patch.object(head, "token_logps", op):
        yield


def all_logits(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    rows: Tensor,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    lora: object = None,
    stats: Sequence[str] = (),
) -> TokenLogps:
    """Score targets from all logits of their rows at once: products in the weights' dtype, the rest in float32."""
    assert softcap is None and lora is None and not stats, "no model of the benchmark needs these"
    logits = scale * F.linear(hidden[rows], weight, bias).float()
    return TokenLogps(logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1))
