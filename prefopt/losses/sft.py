"""Supervised fine-tuning: maximum likelihood of single answers."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from prefopt.losses._door import checked
from prefopt.losses._terms import Nll, answer_nll
from prefopt.types import LossOutput, Reads, SeqLogps


@checked
def sft(
    policy: Annotated[SeqLogps, Reads("length")],
    *,
    mean_chosen_length: Tensor | None = None,
    nll: Nll = "sequence",
) -> LossOutput:
    """Pay the negative log-likelihood of each answer, per token.

    What to run before a preference loss, so that the policy is able to produce answers of this kind.

    When:
        you begin with answers to imitate, before any preference

    Args:
        policy: S answers under the model being trained.
        mean_chosen_length: [] tokens, the mean length of the step's answers; for "batch_token".
        nll: "sequence" averages over each answer's own tokens, so every answer counts alike;
            "batch_token" counts every token of the optimizer step alike, so long answers count more.

    Returns:
        Loss [S], nats per token; no rewards.

    Formula:
        loss = -log-prob / length             (sequence)
        loss = -log-prob / mean_chosen_length (batch_token)

    Raises:
        ValueError: "batch_token" without ``mean_chosen_length``.

    Source:
        Maximum likelihood under teacher forcing, as in Ouyang et al., "Training language models to
        follow instructions with human feedback", 2022, arXiv 2203.02155, step 1.
    """
    return LossOutput(loss=answer_nll(policy, nll, mean_chosen_length))
