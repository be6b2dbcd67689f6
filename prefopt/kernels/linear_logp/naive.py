"""The truth: log-probs from full logits, one autograd line per statistic.

Every other back-end is tested against this file run in float64. It holds the whole [M, V] matrix
several times over, so it is for tests and for small problems.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from prefopt.kernels.linear_logp.spec import LOG_ZERO, HeadInputs, Spec, accumulate_dtype


def naive_logps(inputs: HeadInputs, targets: Tensor, spec: Spec) -> tuple[Tensor, ...]:
    """Return the log-prob of every target, then the statistics in ``spec.stats``, each [M].

    Args:
        inputs: the hidden states, the head and the row index; see ``token_logps``.
        targets: int64 [M], all inside the vocabulary.
        spec: scale, softcap and the statistics to return.
    """
    dtype = accumulate_dtype(inputs.hidden, inputs.weight)
    with torch.autocast(inputs.hidden.device.type, enabled=False):
        logits = full_logits(inputs, spec, dtype)  # [M, V]
        log_probs = F.log_softmax(logits, dim=-1)
        picked = log_probs.gather(-1, targets[:, None]).squeeze(-1)
        return picked, *(_statistic(name, logits, log_probs, targets) for name in spec.stats)


def full_logits(inputs: HeadInputs, spec: Spec, dtype: torch.dtype) -> Tensor:
    """Return every logit of every scored row, [M, V], computed in ``dtype``."""
    logits = inputs.pick(inputs.hidden).to(dtype) @ inputs.weight.to(dtype).T
    if inputs.x2 is not None and inputs.w2 is not None:
        logits = logits + inputs.pick(inputs.x2).to(dtype) @ inputs.w2.to(dtype).T
    if inputs.bias is not None:
        logits = logits + inputs.bias.to(dtype)
    logits = spec.scale * logits
    return logits if spec.softcap is None else spec.softcap * torch.tanh(logits / spec.softcap)


def _statistic(name: str, logits: Tensor, log_probs: Tensor, targets: Tensor) -> Tensor:
    match name:
        case "logsumexp":
            return logits.logsumexp(-1)
        case "entropy":
            return -(log_probs.exp() * log_probs.clamp(min=LOG_ZERO)).sum(-1)
        case "log_sum_p2":
            return (2 * log_probs).logsumexp(-1)
        case "is_top1":
            picked = logits.gather(-1, targets[:, None]).squeeze(-1)
            return (picked >= logits.amax(-1)).to(logits.dtype).detach()
        case "mean_logit":
            return logits.mean(-1)
    raise AssertionError(name)
