"""The check of the first step: where the reference is the start of training, both must score alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prefopt.errors import ModelError
from prefopt.structures import Structure
from prefopt.structures.responses import RESPONSES
from prefopt.trainer.objective import Objective
from prefopt.trainer.replay import gather_logps
from prefopt.trainer.scoring import Scorer, Scores
from prefopt.types import LossOutput, PackedBatch, SeqLogps, StepLayout

LARGEST_GAP = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Most that a first loss may differ from the loss at equal log-probs, absolute plus relative, by dtype."""


class StartCheck:
    """Hold the policy against its reference in every pack of the first step.

    Args:
        scorer: knows policy and reference, and scores without dropout.
        objective: computes the loss.

    Attributes:
        found: the largest difference, absolute plus relative, once checked.
    """

    def __init__(self, scorer: Scorer, objective: Objective) -> None:
        self.scorer, self.objective = scorer, objective
        self.found: float | None = None

    def is_due(self, batch: PackedBatch, index: int) -> bool:
        """Tell whether a batch of the run's step ``index`` is to be checked."""
        reference = self.scorer.reference
        # with dropout the check scores once more, which ranks that share weights must do together
        is_scored = not batch.is_ghost or self.scorer.engine.sharding is not None
        # all of the first step, and nothing later: the weights have moved, and reading a gap waits for the device
        return index == 0 and is_scored and reference is not None and reference.is_start

    def check_pack(
        self, batch: PackedBatch, scores: Scores, output: LossOutput, inputs: Mapping[str, Tensor]
    ) -> None:
        """Compare the loss with that of equal log-probs; a pack without a unit says nothing."""
        assert scores.reference is not None
        if output.loss.numel() == 0:
            return
        objective = self.objective
        policy = objective.arrange(batch, scores.policy)
        if self.scorer.policy.drops:
            policy = objective.arrange(batch, self.scorer.still(batch, scores.rows))
            output = objective.compute(policy, objective.arrange(batch, scores.reference), inputs)
        with torch.no_grad():
            expected = objective.compute(policy.detach(), policy.detach(), inputs).loss
        loss = output.loss.detach()
        self._note(check_loss(objective.structure, batch, loss, expected, self.scorer.dtype))

    def check_step(
        self, layout: StepLayout, packs: Sequence[PackedBatch], policy: SeqLogps, reference: SeqLogps
    ) -> None:
        """Compare the log-probs themselves, since a loss over the whole step may blow rounding up."""
        if self.scorer.policy.drops:
            still = [self.scorer.still(self.scorer.on_device(batch)) for batch in packs]
            policy = gather_logps(layout, packs, still, self.scorer.engine)
        self._note(check_logps(layout.batch, policy, reference, self.scorer.dtype))

    def _note(self, gap: float) -> None:
        self.found = gap if self.found is None else max(self.found, gap)


def check_loss(
    structure: Structure, batch: PackedBatch, loss: Tensor, expected: Tensor, dtype: torch.dtype
) -> float:
    """Compare the loss of the first step with that of equal log-probs.

    Args:
        structure: of the loss.
        batch: whose units were scored.
        loss: [U], of policy against reference.
        expected: [U], of the policy against itself.
        dtype: that the model computes in.

    Returns:
        The largest difference, absolute plus relative.

    Raises:
        ModelError: it is beyond rounding; names the row.
    """
    gap = (loss - expected).abs() / (1 + expected.abs())
    worst = int(gap.argmax())
    what = f"the loss is {loss[worst].item():.6g} where equal log-probs give {expected[worst].item():.6g}"
    return _judge(gap[worst].item(), dtype, structure.origin(batch, worst), what)


def check_logps(batch: PackedBatch, policy: SeqLogps, reference: SeqLogps, dtype: torch.dtype) -> float:
    """Compare the log-probs of the first step, for a loss over the whole step.

    Such a loss may divide by how much its units differ from each other, which at the start is rounding,
    so its own value would not tell. A difference counts as much as it moves the loss of DPO with beta 0.1.

    Args:
        batch: whose answers were scored.
        policy: S answers.
        reference: the same answers.
        dtype: that the model computes in.

    Returns:
        The largest difference, absolute plus relative.

    Raises:
        ModelError: it is beyond rounding; names the row.
    """
    gap = 0.05 * (policy.total - reference.total).abs() / (1 + math.log(2))
    worst = int(gap.argmax())
    one, other = policy.total[worst].item(), reference.total[worst].item()
    what = f"the log-prob of an answer is {one:.6g} under the policy and {other:.6g} under the reference"
    return _judge(gap[worst].item(), dtype, RESPONSES.origin(batch, worst), what)


def _judge(gap: float, dtype: torch.dtype, origin: str, what: str) -> float:
    if gap > LARGEST_GAP[dtype]:
        raise ModelError(
            f"{origin}: before the first step policy and reference are the same weights, yet {what}. "
            f"Check that the reference is the model that training starts from."
        )
    return gap
