"""Run the packs of an optimizer step twice, so that a loss can read all of its units at once.

What a loss over the whole step pays for one unit depends on all others, in other packs and on other
ranks. So every pack is scored without gradient first, and the log-probs of all ranks are put into the
order of the plan. The loss is called once on all of them and differentiated with respect to each; then
the packs are scored again, each with its share of that derivative as upstream gradient. By the chain
rule this is the gradient of the whole step, however it is split, and only log-probs are held in between.

Two packs of one unit each, whose log-probs are a = 1 and b = 3, and a loss of (a - b)^2 over the step: the
first pass finds 1 and 3, the loss is 4, its derivative by a is 2 (a - b) = -4 and by b is 4. The second pass
pulls -4 through the first pack and 4 through the other, so the parameters get -4 da + 4 db, which neither
pack could have known alone. Where each token lies is said by ``prefopt.data.packs.step_layout``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prefopt.engine import Engine
from prefopt.trainer.scoring import Scores
from prefopt.types import PackedBatch, SeqLogps, StepLayout


def gather_logps(
    layout: StepLayout, packs: Sequence[PackedBatch], scores: Sequence[SeqLogps], engine: Engine
) -> SeqLogps:
    """Put what the packs of all ranks scored into the order of the plan, outside the graph.

    Args:
        layout: of the step.
        packs: of this rank; ghosts are left out.
        scores: of each of them.
        engine: all ranks must call.
    """
    names = tuple(scores[0].stats)
    rows = [torch.stack([part.tokens, *(part.stats[name] for name in names)], 1) for part in scores]
    own = [part[:0] if batch.is_ghost else part for part, batch in zip(rows, packs, strict=True)]
    held = engine.gather(torch.cat(own).detach(), layout.counts)
    tokens, *stats = held.index_select(0, layout.places).t().contiguous()
    return SeqLogps(tokens, layout.batch.lengths, dict(zip(names, stats, strict=True)))


def gather_scores(
    layout: StepLayout, packs: Sequence[PackedBatch], scores: Sequence[Scores], engine: Engine
) -> tuple[SeqLogps, SeqLogps | None]:
    """Put the log-probs of policy and reference into the order of the plan; see ``gather_logps``."""
    policy = gather_logps(layout, packs, [part.policy for part in scores], engine)
    others = [part.reference for part in scores if part.reference is not None]
    return policy, gather_logps(layout, packs, others, engine) if others else None


def share_out(layout: StepLayout, values: Tensor, packs: Sequence[PackedBatch]) -> list[Tensor]:
    """Hand each of this rank's packs its part of per-token values in the order of the plan.

    Args:
        layout: of the step.
        values: [M, K].
        packs: of this rank, in the order in which they were gathered, halved or not.

    Returns:
        [tokens of the pack, K] for each; zeros for a ghost.
    """
    held = torch.empty_like(values).index_copy_(0, layout.places, values)
    parts, at = [], layout.start
    for batch in packs:
        count = sum(batch.lengths)
        if batch.is_ghost:
            parts.append(values.new_zeros(count, values.shape[1]))
            continue
        parts.append(held[at : at + count])
        at += count
    return parts


class Replay:
    """Score the packs of one optimizer step, then score them again to pull a gradient through them.

    The last pack keeps its graph in between, so n packs are scored 2 n - 1 times and one pack once.

    Args:
        packs: of this rank.
        layout: of the step.
        engine: shares gradients over ranks.
        model: as the engine wrapped it.
        first: scores the pack of that number, with the random numbers that belong to it.
        again: scores it once more, with the same random numbers, by the policy alone.
    """

    def __init__(
        self,
        packs: Sequence[PackedBatch],
        layout: StepLayout,
        engine: Engine,
        model: nn.Module,
        first: Callable[[int], Scores],
        again: Callable[[int], SeqLogps],
    ) -> None:
        self.packs, self.layout, self.engine, self.model = packs, layout, engine, model
        self._first, self._again = first, again
        self._last = len(packs) - 1
        self.pack_sums: list[Tensor] = []  # log-probs of each pack added up, to find out which is not finite

    def score(self) -> tuple[SeqLogps, SeqLogps | None]:
        """Return the log-probs of the whole step under the policy, as leaves, and under the reference."""
        scores = []
        for at in range(len(self.packs)):
            with torch.set_grad_enabled(at == self._last), self._part(is_last=self._last == 0):
                scores.append(self._first(at)._replace(rows=None))
        self._kept = scores[self._last].policy
        self.pack_sums = [
            part.policy.tokens.detach().sum()
            + (0.0 if part.reference is None else part.reference.tokens.detach().sum())
            for part in scores
        ]
        policy, reference = gather_scores(self.layout, self.packs, scores, self.engine)
        self._leaves = [values.requires_grad_() for values in (policy.tokens, *policy.stats.values())]
        return policy, reference

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss`` [], computed from what ``score`` returned, to the parameters."""
        found = torch.autograd.grad(loss, self._leaves, materialize_grads=True)
        upstream = share_out(self.layout, torch.stack(found, 1), self.packs)
        for at in (self._last, *range(self._last)):
            with self._part(is_last=at == max(0, self._last - 1)):
                part = self._kept if at == self._last else self._again(at)
                values = torch.stack([part.tokens, *part.stats.values()], 1)
                self.engine.backward((values * upstream[at]).sum())

    def _part(self, *, is_last: bool) -> Any:
        return self.engine.accumulate(self.model, is_last=is_last)
