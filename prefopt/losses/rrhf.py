"""RRHF: rank responses to align with human feedback, by length-normalised likelihoods."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from torch import Tensor

from prefopt.losses._door import checked
from prefopt.losses._lists import Grid, with_list_rewards
from prefopt.losses._terms import answer_nll, stop
from prefopt.types import ListLogps, LossOutput, Range, Reads


@checked
def rrhf(
    policy: Annotated[ListLogps, Reads("length")],
    *,
    answer_score: Tensor,
    alpha: Annotated[float, Range(ge=0)] = 1.0,
    lam: Annotated[float, Range(ge=0)] = 1.0,
) -> LossOutput:
    """Pay for every pair of answers that the policy ranks wrongly, plus the NLL of the best answer.

    As simple as fine-tuning on the best of several answers, and nearly as steady: a pair in the right
    order costs nothing, and there is neither a reference nor a margin. The sum over pairs grows with the
    list, the NLL does not.

    When:
        each row has several answers with scores

    Args:
        policy: G groups of answers under the model being trained.
        answer_score: [S] score of every answer; only their order counts.
        alpha: weight of the best answer's NLL per token.
        lam: exponent of the length that divides each log-prob; 1 is the mean per token, 0 the sum.

    Returns:
        Loss [G]; rewards [G], the log-prob over length^lam: of the best answer, and the mean of the others';
        metrics ``ranking_accuracy`` and ``nll`` [G].

    Formula:
        s = log-prob / length^lam, r = answer_score, for each answer
        loss = sum over i, j with r_i > r_j of max(0, s_j - s_i) + alpha * (-log-prob / length of the best)

    Source:
        Yuan, Yuan, Tan, Wang, Huang and Huang, "RRHF: Rank Responses to Align Language Models with Human
        Feedback without tears", 2023, arXiv 2304.05302. The authors' code averages the NLL over the padded
        row, so its weight depends on the batch; here it is per token of the answer. Its ``rrhf_weight`` is
        1 / alpha, up to the scale of the whole.
    """
    grid = Grid(policy)
    answers = policy.answers
    likelihood = answers.total / answers.length.pow(lam)
    table = grid.lay(likelihood)
    excess = (table[:, None, :] - table[:, :, None]).clamp(min=0.0)
    loss = (excess * grid.is_better(answer_score)).sum(dim=(1, 2))
    best = grid.best_first(answer_score)[:, :1]
    nll = grid.lay(answer_nll(answers, "sequence")).gather(1, best)[:, 0]
    output = with_list_rewards(loss + alpha * nll, grid, likelihood, answer_score)
    return replace(output, metrics={**output.metrics, "nll": stop(nll)})
