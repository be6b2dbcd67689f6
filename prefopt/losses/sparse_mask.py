"""SparsePO: token-level DPO in which learned masks say how much each token counts."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from prefopt.losses._compose import COMBINING, RESUMMING
from prefopt.losses._door import checked
from prefopt.losses._terms import logistic, token_ratios, with_rewards
from prefopt.types import LossOutput, PairLogps, Range, Refuses, SeqLogps, Stats
from prefopt.types.checks import wide


@checked
def sparse_mask(
    policy: Annotated[PairLogps, Stats("kl", "reward_mask"), Refuses(*RESUMMING, *COMBINING, "f_div")],
    reference: PairLogps,
    *,
    beta: Annotated[float, Range(gt=0)] = 0.1,
    l1: Annotated[float, Range(ge=0)] = 0.001,
) -> LossOutput:
    """Pay the loss of ``tdpo`` 1 with log-ratio and divergence of each token times a learned mask.

    For preferences that hang on a few words: a small module on the reference's hidden states learns which
    tokens count, for reward and divergence alike, and is trained along with the policy. Masks are not
    bounded above, and nothing but ``l1`` holds them down: it sets how many tokens keep a mask above
    zero. The module has a learning rate of its own, ``optim.mask_lr``.

    When:
        few tokens matter and the rest is noise

    Args:
        policy: P pairs under the model being trained, with the stats ``kl`` and ``reward_mask``.
        reference: the same P pairs under the reference.
        beta: reward per nat.
        l1: cost of each unit of mask.

    Returns:
        Loss [P]; rewards [P], beta times (masked log-ratio + masked divergence); metrics ``mask`` [P], the
        mean mask of a token, and ``masked_out`` [P], the share of tokens whose mask is zero.

    Formula:
        u = sum of mask * (policy - reference), d = sum of mask * KL(reference || policy), over an answer's tokens
        loss = -log sigmoid(beta * (u_chosen - u_rejected - (d_rejected - d_chosen)))
             + l1 * (sum of |mask| over both answers)

    Source:
        Christopoulou, Cardenas, Lampouras, Bou-Ammar and Wang, "SparsePO: Controlling Preference Alignment
        of LLMs via Sparse Token Masks", 2024, arXiv 2410.05102, one mask for both. The authors' code adds
        the cost of a shared mask for u and for d, each at half its weight; ``l1`` is what they set for either
        on HH-RLHF. Their other recipes have none.
    """
    return masked_tdpo(policy, reference, "reward_mask", "reward_mask", beta, l1)


@checked
def sparse_mask_independent(
    policy: Annotated[
        PairLogps, Stats("kl", "reward_mask", "kl_mask"), Refuses(*RESUMMING, *COMBINING, "f_div")
    ],
    reference: PairLogps,
    *,
    beta: Annotated[float, Range(gt=0)] = 0.1,
    l1: Annotated[float, Range(ge=0)] = 0.0,
) -> LossOutput:
    """Pay the loss of ``sparse_mask`` with one learned mask for the reward and another for the divergence.

    For when tokens that carry the preference should be free to stray while others are held. The two masks
    may part so far that a token's reward counts and its divergence does not; ``sparse_mask`` is the safer
    start.

    When:
        few tokens matter and the rest is noise

    Args:
        policy: P pairs under the model being trained, with the stats ``kl``, ``reward_mask``
            and ``kl_mask``.
        reference: the same P pairs under the reference.
        beta: reward per nat.
        l1: cost of each unit of either mask; with 0 nothing but the margin holds the masks down.

    Returns:
        As ``sparse_mask``; the metrics are those of the mask of the reward.

    Formula:
        u = sum of mask * (policy - reference), d = sum of kl_mask * KL(reference || policy)
        loss = -log sigmoid(beta * (u_chosen - u_rejected - (d_rejected - d_chosen)))
             + l1 * (sum of |mask| + |kl_mask| over both answers)

    Source:
        Christopoulou, Cardenas, Lampouras, Bou-Ammar and Wang, "SparsePO: Controlling Preference Alignment
        of LLMs via Sparse Token Masks", 2024, arXiv 2410.05102, independent masks; no ``l1``, as in all
        recipes of the authors for these.
    """
    return masked_tdpo(policy, reference, "reward_mask", "kl_mask", beta, l1)


def masked_tdpo(
    policy: PairLogps, reference: PairLogps, mask: str, kl_mask: str, beta: float, l1: float = 0.0
) -> LossOutput:
    """Pay the loss of ``tdpo`` 1 on masked sums, plus ``l1`` times each of the stats ``mask`` and ``kl_mask`` once."""
    chosen_u, chosen_d = _masked(policy.chosen, reference.chosen, mask, kl_mask)
    rejected_u, rejected_d = _masked(policy.rejected, reference.rejected, mask, kl_mask)
    loss = logistic(beta * (chosen_u - rejected_u - (rejected_d - chosen_d)))
    both = (policy.chosen, policy.rejected)
    if l1 > 0.0:
        masks = dict.fromkeys((mask, kl_mask))  # a shared one is paid for once
        cost = sum(side.sum(side.stats[name].abs()) for side in both for name in masks)
        loss = loss + l1 * cost
    length = policy.chosen.length + policy.rejected.length
    total = sum(side.sum(side.stats[mask]) for side in both)
    zeros = sum(side.sum((side.stats[mask] == 0).to(loss.dtype)) for side in both)
    metrics = {"mask": total / length, "masked_out": zeros / length}
    return with_rewards(loss, chosen_u + chosen_d, rejected_u + rejected_d, beta, **metrics)


def _masked(policy: SeqLogps, reference: SeqLogps, mask: str, kl_mask: str) -> tuple[Tensor, Tensor]:
    """Return the masked log-ratio and the masked divergence of each answer, both [P]."""
    ratio = policy.sum(policy.stats[mask] * token_ratios(policy, reference))
    return ratio, policy.sum(wide(policy.stats[kl_mask]) * policy.stats["kl"])
