"""Run the packs of an optimizer step twice, so that a loss can read all of its units at once.

What a loss over the whole step pays for one unit depends on all others, in other packs and on other
ranks. So every pack is scored without gradient first, and the log-probs of all ranks are put into the
order of the plan. The loss is called once on all of them and differentiated with respect to each; then
the packs are scored again, each with its share of that derivative as upstream gradient. By the chain
rule this is the gradient of the whole step, however it is split, and only log-probs are held in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prefopt.data.packs.loader import Groups
from prefopt.data.packs.pack import pack
from prefopt.data.packs.plan import Plan
from prefopt.data.tokens.arrays import Int64
from prefopt.engine import Engine
from prefopt.ragged import on_device
from prefopt.trainer.scoring import Scores
from prefopt.types import PackedBatch, SeqLogps


@dataclass(frozen=True, slots=True)
class StepLayout:
    """Where the scored tokens of one optimizer step lie: in the order of the plan, and rank by rank.

    Args:
        batch: all groups of the step in the plan's order; says what its units are, and is never scored.
        places: int64 [M], where each scored token of ``batch`` lies among those that the ranks hold.
        counts: [world], how many scored tokens each rank holds.
        start: first of this rank's tokens among those that the ranks hold.
    """

    batch: PackedBatch
    places: Tensor
    counts: tuple[int, ...]
    start: int

    def gather(self, packs: Sequence[PackedBatch], scores: Sequence[SeqLogps], engine: Engine) -> SeqLogps:
        """Put what the packs of all ranks scored into the order of the plan, outside the graph.

        Args:
            packs: of this rank; ghosts are left out.
            scores: of each of them.
            engine: all ranks must call.
        """
        names = tuple(scores[0].stats)
        rows = [torch.stack([part.tokens, *(part.stats[name] for name in names)], 1) for part in scores]
        own = [part[:0] if batch.is_ghost else part for part, batch in zip(rows, packs, strict=True)]
        held = engine.gather(torch.cat(own).detach(), self.counts)
        tokens, *stats = held.index_select(0, self.places).t().contiguous()
        return SeqLogps(tokens, self.batch.lengths, dict(zip(names, stats, strict=True)))

    def gather_both(
        self, packs: Sequence[PackedBatch], scores: Sequence[Scores], engine: Engine
    ) -> tuple[SeqLogps, SeqLogps | None]:
        """Put the log-probs of policy and reference into the order of the plan; see ``gather``."""
        policy = self.gather(packs, [part.policy for part in scores], engine)
        others = [part.reference for part in scores if part.reference is not None]
        return policy, self.gather(packs, others, engine) if others else None

    def share_out(self, values: Tensor, packs: Sequence[PackedBatch]) -> list[Tensor]:
        """Hand each of this rank's packs its part of per-token values in the order of the plan.

        Args:
            values: [M, K].
            packs: of this rank, in the order in which they were gathered, halved or not.

        Returns:
            [tokens of the pack, K] for each; zeros for a ghost.
        """
        held = torch.empty_like(values).index_copy_(0, self.places, values)
        parts, at = [], self.start
        for batch in packs:
            count = sum(batch.lengths)
            if batch.is_ghost:
                parts.append(values.new_zeros(count, values.shape[1]))
                continue
            parts.append(held[at : at + count])
            at += count
        return parts


def lay_out(plan: Plan, groups: Groups, index: int, engine: Engine) -> StepLayout:
    """Find out where the scored tokens of optimizer step ``index`` lie; no rank need ask another."""
    order, planned = plan.groups(index), plan.step(index)
    batch = pack([groups[int(group)] for group in order])
    by_rank = [
        [group for members in packs[: len(packs) - ghosts] for group in members]
        for packs, ghosts in zip(planned.ranks, planned.ghosts, strict=True)
    ]
    slots = _slots(order, np.array([group for held in by_rank for group in held], dtype=np.int64))
    tokens = np.add.reduceat(np.array(batch.lengths, dtype=np.int64), batch.groups[:-1])  # of each group
    in_slots = np.empty_like(tokens)
    in_slots[slots] = tokens
    ends = np.concatenate([[0], np.cumsum(in_slots)])
    places = np.arange(tokens.sum()) + np.repeat(ends[slots] - (np.cumsum(tokens) - tokens), tokens)
    starts = ends[np.cumsum([0, *map(len, by_rank)])]  # of each rank, and the end of the last
    # the tokens themselves never meet the model, so they stay behind
    bare = replace(batch, input_ids=batch.input_ids[:0], position_ids=batch.position_ids[:0])
    return StepLayout(
        batch=bare.copy_to(engine.device),
        places=on_device(torch.from_numpy(places), engine.device),
        counts=tuple(np.diff(starts).tolist()),
        start=int(starts[engine.rank]),
    )


def _slots(order: Int64, held: Int64) -> Int64:
    """Return where each group of ``order`` is found in ``held``; a group drawn twice is found twice."""
    slots = np.empty(len(order), dtype=np.int64)
    slots[np.argsort(order, kind="stable")] = np.argsort(held, kind="stable")
    return slots


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
        policy, reference = self.layout.gather_both(self.packs, scores, self.engine)
        self._leaves = [values.requires_grad_() for values in (policy.tokens, *policy.stats.values())]
        return policy, reference

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss`` [], computed from what ``score`` returned, to the parameters."""
        found = torch.autograd.grad(loss, self._leaves, materialize_grads=True)
        upstream = self.layout.share_out(torch.stack(found, 1), self.packs)
        for at in (self._last, *range(self._last)):
            with self._part(is_last=at == max(0, self._last - 1)):
                part = self._kept if at == self._last else self._again(at)
                values = torch.stack([part.tokens, *part.stats.values()], 1)
                self.engine.backward((values * upstream[at]).sum())

    def _part(self, *, is_last: bool) -> Any:
        return self.engine.accumulate(self.model, is_last=is_last)
