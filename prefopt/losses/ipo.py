"""Identity preference optimization: regression of the margin instead of classification."""

from __future__ import annotations

from typing import Annotated

from prefopt.losses._door import checked
from prefopt.losses._terms import Norm, log_ratio, squared, with_rewards
from prefopt.types import LossOutput, OnlyWith, PairLogps, Range, Reads


@checked
def ipo(
    policy: Annotated[PairLogps, Reads("length", only_with=OnlyWith("norm", "mean"))],
    reference: PairLogps,
    *,
    beta: Annotated[float, Range(gt=0)] = 0.1,
    norm: Norm = "mean",
) -> LossOutput:
    """Pay the squared distance of the log-ratio margin from 1 / (2 beta).

    For labels that are nearly certain, where DPO would push the margin without end: here the margin
    has a target, and overshooting costs as much as falling short. With ``norm="mean"`` the margin is
    per token, hence small: beta 0.1 asks for 5 nats per token; 0.5 to 1 is a milder target.

    When:
        the margin grows without end on clear pairs

    Args:
        policy: P pairs under the model being trained.
        reference: the same P pairs under the reference.
        beta: the paper's tau; the target margin is 1 / (2 beta) nats (per token for "mean").
        norm: "mean" divides each log-ratio by its own answer's length; "sum" does not.

    Returns:
        Loss [P]; rewards [P], beta times the log-ratio in the same norm.

    Formula:
        h = (policy - reference) / length^[norm = mean], for each answer
        loss = (h_chosen - h_rejected - 1 / (2 * beta))^2

    Source:
        Azar, Rowland, Piot, Guo, Calandriello, Valko and Munos, "A General Theoretical Paradigm to
        Understand Learning from Human Preferences", 2023, arXiv 2310.12036, equation 17. The paper writes
        the sum; "mean" is the default here because it is the form that TRL, HALOs and LLaMA-Factory
        train with, and that its authors confirmed to TRL's maintainers.
    """
    chosen = log_ratio(policy.chosen, reference.chosen, norm)
    rejected = log_ratio(policy.rejected, reference.rejected, norm)
    loss = squared(chosen - rejected, target=1.0 / (2.0 * beta))
    return with_rewards(loss, chosen, rejected, beta)
