"""Relative preference optimization: every chosen answer against every rejected answer of the step."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.errors import RecipeError
from prefopt.losses._door import checked
from prefopt.losses._terms import log_ratio, logistic, stop, with_rewards
from prefopt.types import LossOutput, OnlyWith, PairLogps, Range, WholeStep


@checked
def relative(
    policy: Annotated[PairLogps, WholeStep()],
    reference: PairLogps,
    *,
    prompt_embedding: Tensor | None = None,
    beta: Annotated[float, Range(gt=0)] = 0.1,
    weighting: Literal["embedding", "diagonal"] = "embedding",
    tau: Annotated[float, Range(gt=0), OnlyWith("weighting", "embedding")] = 0.5,
    diagonal_weight: Annotated[float, Range(ge=0, le=1), OnlyWith("weighting", "diagonal")] = 0.8,
) -> LossOutput:
    """Pay for each chosen answer that is not better than the rejected answers, to other prompts too.

    Lets prompts that are alike learn from each other's answers. With ``weighting`` "embedding" a rejected
    answer counts by how near its prompt is; the weights lie inside the sigmoid and add up to 1 over all P
    pairs of the optimizer step, so that beta acts like beta / P: raise it with the step. "diagonal" needs
    no embeddings: it pays DPO's loss of the pair itself and, with a fixed weight, that against all others.

    When:
        one pair at a time says too little

    Args:
        policy: P pairs under the model being trained, all of the optimizer step.
        reference: the same P pairs under the reference.
        prompt_embedding: [P, E] vector of each pair's prompt, for "embedding".
        beta: reward per nat of log-ratio.
        weighting: "embedding" or "diagonal".
        tau: distance at which the weight has fallen to 1 / e, for "embedding".
        diagonal_weight: share of the pair's own loss, for "diagonal"; a single pair pays its own alone.

    Returns:
        Loss [P]; rewards [P], beta times the log-ratio of each answer.

    Formula:
        h = policy - reference, sums of log-probs, for each answer
        embedding: w_ij = softmax over j of -(1 - cos(e_i, e_j)) / tau, held constant
        loss_i = mean over j of -log sigmoid(beta * w_ij * (h_chosen,i - h_rejected,j))
        diagonal: L_ij = -log sigmoid(beta * (h_chosen,i - h_rejected,j))
        loss_i = diagonal_weight * L_ii + (1 - diagonal_weight) * mean over j other than i of L_ij

    Raises:
        RecipeError: "embedding" without ``prompt_embedding``.

    Source:
        Yin, Wang, Gu, Huang, Chen and Zhou, "Relative Preference Optimization: Enhancing LLM Alignment
        through Contrasting Responses across Identical and Diverse Prompts", 2024, arXiv 2402.10958, as in
        the authors' code. There the pairs are those of a micro-batch; here they are all of the step.
    """
    chosen = log_ratio(policy.chosen, reference.chosen)
    rejected = log_ratio(policy.rejected, reference.rejected)
    margins = chosen[:, None] - rejected[None, :]
    if weighting == "embedding":
        loss = logistic(beta * _nearness(prompt_embedding, tau).to(margins.dtype) * margins).mean(1)
    else:
        loss = _with_diagonal(logistic(beta * margins), diagonal_weight)
    return with_rewards(loss, chosen, rejected, beta)


def _nearness(embedding: Tensor | None, tau: float) -> Tensor:
    """Return how much each pair counts for each other, [P, P]; rows add up to 1."""
    if embedding is None:
        raise RecipeError(
            "relative.weighting: 'embedding' needs the input prompt_embedding, which the data does not have. "
            "Map a column of vectors to it, or set weighting: diagonal."
        )
    unit = F.normalize(embedding, dim=1)
    return stop(torch.softmax((unit @ unit.T - 1) / tau, dim=1))


def _with_diagonal(losses: Tensor, diagonal_weight: float) -> Tensor:
    own = losses.diagonal()
    if len(own) == 1:
        return own
    others = (losses.sum(1) - own) / (len(own) - 1)
    return diagonal_weight * own + (1 - diagonal_weight) * others
