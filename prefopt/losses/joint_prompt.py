"""DOVE: preferences between answers to different instructions."""

from __future__ import annotations

from typing import Annotated

from prefopt.losses._door import checked
from prefopt.losses.dpo import dpo
from prefopt.types import LossOutput, PairLogps, Prompts, Range


@checked
def joint_prompt(
    policy: Annotated[PairLogps, Prompts("two")],
    reference: PairLogps,
    *,
    beta: Annotated[float, Range(gt=0)] = 0.1,
    label_smoothing: Annotated[float, Range(ge=0, lt=0.5)] = 0.0,
) -> LossOutput:
    """Pay the DPO loss of a pair whose two answers may reply to different prompts.

    For judgements over whole (instruction, answer) pairs, such as "this is the better answer to that
    question than that one to this", which say something even where nobody compared two answers to one
    instruction. Ordinary pairs may stand among them, and for those it is ``dpo``. Prompts that differ
    share nothing, so such a pair costs as much as two sequences.

    When:
        each row has another prompt on each side

    Args:
        policy: P pairs under the model being trained.
        reference: the same P pairs under the reference.
        beta: reward per nat of log-ratio.
        label_smoothing: probability that a label is flipped.

    Returns:
        Loss [P]; rewards [P], beta times the log-ratio of each answer after its own prompt.

    Formula:
        D = (chosen - reference chosen) - (rejected - reference rejected), each after its own prompt
        loss = -(1 - label_smoothing) * log sigmoid(beta * D) - label_smoothing * log sigmoid(-beta * D)

    Source:
        Bansal, Suvarna, Bhatt, Peng, Chang and Grover, "Comparing Bad Apples to Good Oranges: Aligning
        Large Language Models via Joint Preference Optimization", 2024, arXiv 2404.00530, as in the authors'
        code. The instructions' own likelihoods, which the joint objective also holds, are left out there too.
    """
    return dpo(policy, reference, beta=beta, label_smoothing=label_smoothing)
