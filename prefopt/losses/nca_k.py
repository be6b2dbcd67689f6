"""NCA and InfoNCA on lists: noise-contrastive alignment to the scores of K answers."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from prefopt.losses._door import checked
from prefopt.losses._lists import Grid, with_list_rewards
from prefopt.losses._terms import log_ratio, logistic
from prefopt.types import ListLogps, LossOutput, Range


@checked
def infonca_k(
    policy: ListLogps,
    reference: ListLogps,
    *,
    answer_score: Tensor,
    beta: Annotated[float, Range(gt=0)] = 0.01,
    tau: Annotated[float, Range(gt=0)] = 1.0,
) -> LossOutput:
    """Pay the cross-entropy between the softmax of the scores and that of the rewards.

    For answers with scores of a reward model or judge whose gaps mean something: an answer nearly as good as
    the best is wanted nearly as much. Only differences of log-ratios count, so all of them may fall together;
    ``nca_k`` prevents that. With two answers and a small ``tau`` it is ``dpo``.

    When:
        each row has several answers with scores

    Args:
        policy: G groups of answers under the model being trained.
        reference: the same groups under the reference.
        answer_score: [S] score of every answer.
        beta: reward per nat of log-ratio.
        tau: temperature of the scores; the smaller, the more the best answer takes all.

    Returns:
        Loss [G]; rewards [G], beta times the log-ratio: of the best answer, and the mean of the others'; metric
        ``ranking_accuracy`` [G].

    Formula:
        h = policy - reference, sums of log-probs, for each answer
        y = softmax over the group of answer_score / tau
        loss = -sum over k of y_k * log softmax_k(beta * h)

    Source:
        Chen, He, Yuan, Cui, Su and Zhu, "Noise Contrastive Alignment of Language Models with Explicit
        Rewards", 2024, arXiv 2402.05369. The authors' code adds 0.01 to the first score, so that ties favour
        the first answer; here equal scores are wanted equally. Its recipe has tau 1e-4 on scores from 1 to
        10, which leaves all to the best.
    """
    grid = Grid(policy)
    rewards = beta * log_ratio(policy.answers, reference.answers)
    wanted = grid.log_softmax(answer_score / tau).exp() * grid.mask
    loss = -(wanted * grid.log_softmax(rewards)).sum(dim=1)
    return with_list_rewards(loss, grid, rewards, answer_score)


@checked
def nca_k(
    policy: ListLogps,
    reference: ListLogps,
    *,
    answer_score: Tensor,
    beta: Annotated[float, Range(gt=0)] = 0.01,
    tau: Annotated[float, Range(gt=0)] = 1.0,
) -> LossOutput:
    """Pay for classifying answers as wanted in proportion to their scores, and every answer as noise.

    As ``infonca_k``, but each answer's own log-ratio counts and not only differences, which keeps the good
    answers' likelihood from sinking. With two answers and a small ``tau`` it is ``nca_pair``.

    When:
        each row has several answers with scores

    Args:
        policy: G groups of answers under the model being trained.
        reference: the same groups under the reference.
        answer_score: [S] score of every answer.
        beta: reward per nat of log-ratio.
        tau: temperature of the scores; the smaller, the more the best answer takes all.

    Returns:
        Loss [G]; rewards [G], beta times the log-ratio: of the best answer, and the mean of the others'; metric
        ``ranking_accuracy`` [G].

    Formula:
        h = policy - reference, sums of log-probs, for each answer
        y = softmax over the group of answer_score / tau
        loss = -sum over k of y_k * log sigmoid(beta * h_k) - mean over k of log sigmoid(-beta * h_k)

    Source:
        Chen, He, Yuan, Cui, Su and Zhu, "Noise Contrastive Alignment of Language Models with Explicit
        Rewards", 2024, arXiv 2402.05369. The authors' code adds 0.01 to the first score, so that ties favour
        the first answer; here equal scores are wanted equally. Its recipe has tau 1e-4 on scores from 1 to
        10, which leaves all to the best.
    """
    grid = Grid(policy)
    rewards = beta * log_ratio(policy.answers, reference.answers)
    wanted = grid.log_softmax(answer_score / tau).exp() * grid.mask
    noise = grid.lay(logistic(-rewards)).sum(dim=1) / grid.count(rewards.dtype)
    loss = (wanted * grid.lay(logistic(rewards))).sum(dim=1) + noise
    return with_list_rewards(loss, grid, rewards, answer_score)
