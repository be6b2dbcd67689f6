"""LD-DPO: DPO with the tail of the longer answer counted less."""

from __future__ import annotations

from typing import Annotated

from prefopt.losses._door import checked
from prefopt.losses._terms import desensitize
from prefopt.losses.dpo import dpo
from prefopt.types import Applies, LossOutput, PairLogps, Range, Reads


@checked
def ld_dpo(
    policy: Annotated[PairLogps, Reads("tokens"), Applies("length_desensitized")],
    reference: PairLogps,
    *,
    beta: Annotated[float, Range(gt=0)] = 0.1,
    label_smoothing: Annotated[float, Range(ge=0, lt=0.5)] = 0.0,
    alpha: Annotated[float, Range(ge=0, le=1)] = 0.5,
    apply_to_reference: bool = True,
) -> LossOutput:
    """Pay the DPO loss on sums that count tokens beyond the shorter answer's length at ``alpha``.

    For data whose chosen answers are longer, where DPO learns to be wordy. This is
    ``length_desensitized(dpo)``.

    When:
        answers grow longer and longer

    Args:
        policy: P pairs under the model being trained.
        reference: the same P pairs under the reference.
        beta: reward per nat of log-ratio.
        label_smoothing: probability that a label is flipped.
        alpha: weight of the tail; 1 is DPO, 0 cuts the longer answer to the shorter one's length.
        apply_to_reference: reweight the reference's tokens too. Without it the margin is not zero at the
            start of training, for the two sums then count different tokens.

    Returns:
        Loss [P]; rewards [P], beta times the log-ratio of the reweighted sums.

    Formula:
        l = min(length_chosen, length_rejected)
        S = sum of log-probs up to l + alpha * sum of log-probs beyond l, for each answer
        loss = dpo on S

    Source:
        Liu, Bai, Han, Weng, Xu, Cao, Wang and Cai, "Length Desensitization in Direct Preference
        Optimization", 2024, arXiv 2409.06411. Reweighting the reference as well is TRL's reading;
        LLaMA-Factory reweights the policy only (``apply_to_reference=False``).
    """
    shortened = desensitize(reference, alpha) if apply_to_reference else reference
    return dpo(desensitize(policy, alpha), shortened, beta=beta, label_smoothing=label_smoothing)
