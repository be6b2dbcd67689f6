"""The truth: KL divergence from full log-probs of both heads, differentiated by autograd.

It holds both [M, V] matrices several times over, so it is for tests and for small problems.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from prefopt.kernels.linear_logp.naive import full_logits
from prefopt.kernels.linear_logp.spec import LOG_ZERO, HeadInputs, Spec, accumulate_dtype


def naive_kl(policy: HeadInputs, spec: Spec, reference: HeadInputs, reference_spec: Spec) -> Tensor:
    """Return KL(reference || policy) at every row, [M].

    Args:
        policy: the policy's hidden states, head and row index.
        spec: its scale and softcap.
        reference: the same of the reference, taken as constant.
        reference_spec: its scale and softcap.
    """
    dtype = accumulate_dtype(policy.hidden, policy.weight, reference.hidden, reference.weight)
    with torch.autocast(policy.hidden.device.type, enabled=False):
        ours = F.log_softmax(full_logits(policy, spec, dtype), dim=-1).clamp(min=LOG_ZERO)
        with torch.no_grad():
            theirs = F.log_softmax(full_logits(reference, reference_spec, dtype), dim=-1)
        return (theirs.exp() * (theirs.clamp(min=LOG_ZERO) - ours)).sum(-1)
