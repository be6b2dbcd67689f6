"""MAPL: one answer to two prompts, of which it fits the first better."""

from __future__ import annotations

from typing import Annotated

from prefopt.losses._door import checked
from prefopt.losses.dpo import dpo
from prefopt.types import LossOutput, PairLogps, Prompts, Range


@checked
def prompt_contrast(
    policy: Annotated[PairLogps, Prompts("contrast")],
    reference: PairLogps,
    *,
    beta: Annotated[float, Range(gt=0)] = 0.1,
    label_smoothing: Annotated[float, Range(ge=0, lt=0.5)] = 0.0,
) -> LossOutput:
    """Pay -log sigmoid of the gap between one answer's rewards after the prompt it fits and after the other.

    For instructions with several constraints: take an answer, write one prompt whose constraints it meets
    and one whose constraints it breaks, and the policy learns to read the prompt rather than to prefer a
    kind of answer. The chosen side of every pair is the answer after the first prompt. To train on such rows
    among ordinary pairs, use ``joint_prompt``, which pays the same for both.

    When:
        each row has one answer under two prompts

    Args:
        policy: P answers, each after two prompts, under the model being trained.
        reference: the same under the reference.
        beta: reward per nat of log-ratio.
        label_smoothing: probability that the prompts are swapped.

    Returns:
        Loss [P]; rewards [P], beta times the log-ratio of the answer after each prompt.

    Formula:
        h(x) = policy - reference, sums of log-probs of the answer after the prompt x
        m = beta * (h(chosen prompt) - h(rejected prompt))
        loss = -(1 - label_smoothing) * log sigmoid(m) - label_smoothing * log sigmoid(-m)

    Source:
        Sun, Cai, Zhu, Zhao, Xue, Zhou, Li and Li, "Multi-Level Aware Preference Learning: Enhancing RLHF for
        Complex Multi-Instruction Tasks", 2025, arXiv 2505.12845, the intra-sample part in its DPO form. The
        inter-sample part, which compares margins of different pairs, is left out.
    """
    return dpo(policy, reference, beta=beta, label_smoothing=label_smoothing)
