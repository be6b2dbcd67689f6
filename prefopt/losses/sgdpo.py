"""Self-guided DPO: each answer is set against a sampled part of the other."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prefopt.losses._compose import RESUMMING
from prefopt.losses._door import checked
from prefopt.losses._terms import log_ratio, logistic, places, scramble, stop, token_ratios, with_rewards
from prefopt.ragged import on_device
from prefopt.types import LossOutput, PairLogps, Range, Reads, Refuses, SeqLogps


@checked
def sgdpo(
    policy: Annotated[PairLogps, Reads("tokens"), Refuses(*RESUMMING, "f_div")],
    reference: PairLogps,
    *,
    pair_seed: Tensor,
    beta: Annotated[float, Range(gt=0)] = 0.1,
    chosen_share: Annotated[float, Range(gt=0, le=1)] = 0.6,
    rejected_share: Annotated[float, Range(gt=0, le=1)] = 0.9,
    label_smoothing: Annotated[float, Range(ge=0, lt=0.5)] = 0.0,
) -> LossOutput:
    """Pay the mean of two DPO losses, each between one whole answer and a sampled part of the other.

    Gives a hold on how far each answer moves. The sampled part (the pilot) carries no gradient: a
    smaller part of the rejected answer leaves the chosen one a smaller margin of its own, and the other
    way round. With all tokens of answers of equal length the value is DPO's and the gradient half of it.

    When:
        rejected answers pull too much

    Args:
        policy: P pairs under the model being trained.
        reference: the same P pairs under the reference.
        pair_seed: int64 [P] seeds the choice of each pair's tokens, the same in any split of the step.
        beta: reward per nat of log-ratio.
        chosen_share: tokens of the chosen answer in its pilot, as a share of the shorter answer's length.
        rejected_share: the same for the rejected answer.
        label_smoothing: probability that a label is flipped.

    Returns:
        Loss [P]; rewards [P], beta times the log-ratio of each whole answer.

    Formula:
        h = sum of (policy - reference) over an answer, g = the same over max(1, floor(share * n)) of its
        tokens, drawn without replacement and held constant, n = length of the shorter answer
        loss = (-log sigmoid(beta * (h_chosen - g_rejected)) - log sigmoid(beta * (g_chosen - h_rejected))) / 2

    Source:
        Zhu et al., "SGDPO: Self-Guided Direct Preference Optimization for Language Model Alignment",
        2025, arXiv 2505.12435; ``pdpo_loss`` and defaults as in the authors' code.
    """
    shorter = np.minimum(policy.chosen.lengths, policy.rejected.lengths)
    pilot_chosen = _pilot(policy.chosen, reference.chosen, chosen_share * shorter, pair_seed, side=1)
    pilot_rejected = _pilot(policy.rejected, reference.rejected, rejected_share * shorter, pair_seed, side=2)
    chosen = log_ratio(policy.chosen, reference.chosen)
    rejected = log_ratio(policy.rejected, reference.rejected)
    against_pilot = logistic(beta * (chosen - pilot_rejected), label_smoothing)
    pilot_against = logistic(beta * (pilot_chosen - rejected), label_smoothing)
    return with_rewards(0.5 * (against_pilot + pilot_against), chosen, rejected, beta)


def _pilot(
    policy: SeqLogps, reference: SeqLogps, wanted: npt.NDArray[np.float64], seed: Tensor, side: int
) -> Tensor:
    """Return the log-ratio over a sample of each answer's tokens, [P], detached.

    Args:
        policy: P answers.
        reference: the same answers.
        wanted: [P] tokens to draw from each answer, rounded down, at least one.
        seed: int64 [P].
        side: tells the two answers of a pair apart.
    """
    device, answer = policy.tokens.device, policy.sequence_of
    place = places(policy.lengths, device)
    count = on_device(torch.from_numpy(np.maximum(wanted.astype(np.int64), 1)), device)
    key = scramble(scramble(seed.to(device) + side)[answer] + place)
    # by answer, and by key within each: the place that a token gets there is its rank
    order = key.argsort(stable=True)
    order = order[answer[order].argsort(stable=True)]
    is_drawn = torch.empty_like(place).index_copy(0, order, place) < count[answer]
    return stop(policy.sum(token_ratios(policy, reference) * is_drawn))
