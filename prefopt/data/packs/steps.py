"""Where a loop reads its steps from: a plan over groups, or anything else that hands out steps in order."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from prefopt.data.packs.loader import Ahead
from prefopt.data.packs.pack import pack
from prefopt.data.packs.plan import Plan, StepPlan
from prefopt.data.packs.step_layout import lay_out
from prefopt.errors import RecipeError
from prefopt.ragged import ASYNCHRONOUS
from prefopt.structures.packs import of_role
from prefopt.types import PackedBatch, Step, StepLayout, TokenizedGroup, Totals


class Groups(Protocol):
    """Anything that hands out groups by index: a list, or a table on disk."""

    def __getitem__(self, index: int, /) -> TokenizedGroup: ...


@dataclass(frozen=True, slots=True)
class Reader:
    """Who reads steps, and what of them.

    Args:
        rank: whose packs.
        world: number of ranks.
        device: where the packs will be moved. For a GPU they lie in pinned memory, so that
            ``PackedBatch.to(device, non_blocking=True)`` returns at once.
        wants_layout: the loss reads all units of a step at once, so steps carry their layout.
    """

    rank: int = 0
    world: int = 1
    device: torch.device | None = None
    wants_layout: bool = False


ALONE = Reader()
"""A single process that reads from host memory."""


class Steps(Protocol):
    """A source of optimizer steps, the seam to whatever makes data.

    ``stream`` hands out steps ``start``, ``start + 1``, ... for one reader, at most up to ``stop - 1``; it
    may end earlier, or go on for ever. A generator method will do: it runs between two steps, when the
    weights are at rest, and only when a step is asked for, so it may sample from the policy. All ranks must
    be handed as many packs, and the same totals.
    """

    def stream(self, start: int, stop: int, reader: Reader) -> Iterator[Step]: ...


class CountedSteps(Steps, Protocol):
    """A source of which a pass has an end, as evaluation needs: its totals are known before its first step."""

    def __len__(self) -> int:
        """Return the steps of one pass."""
        ...

    def totals(self) -> Totals:
        """Return the units of one pass."""
        ...


@dataclass(frozen=True, slots=True)
class PlannedSteps:
    """Steps as a plan lays them out, built ahead on a thread; any step can be asked for at any time.

    Args:
        plan: which groups meet in which step.
        groups: hands out a group by index, e.g. a ``GroupTable`` or a list; those that were planned.
        share_prompts: lay each prompt down once for all its responses.
    """

    plan: Plan
    groups: Groups
    share_prompts: bool = True

    def __len__(self) -> int:
        """Return the steps of the plan's first epoch."""
        return self.plan.num_steps(1)

    def totals(self) -> Totals:
        """Return the units of the plan's first epoch."""
        return self.plan.epoch_totals(0)

    def stream(self, start: int, stop: int, reader: Reader = ALONE, *, ahead: int = 2) -> Iterator[Step]:
        """Hand out steps ``start`` to ``stop - 1``, ``ahead`` of them built beforehand.

        Raises:
            RecipeError: the plan is for another number of ranks, or of groups.
        """
        self._check(reader)
        return Ahead(lambda index: self.build(index, reader), start, stop, device=reader.device, ahead=ahead)

    def build(self, index: int, reader: Reader = ALONE) -> Step:
        """Build step ``index`` for a reader."""
        planned = self.plan.step(index)
        mine, num_ghosts = planned.ranks[reader.rank], planned.ghosts[reader.rank]
        members = tuple(tuple(self.groups[i] for i in each) for each in mine)
        packs = tuple(
            pack(each, share_prompts=self.share_prompts, is_ghost=at >= len(mine) - num_ghosts)
            for at, each in enumerate(members)
        )
        layout = self._layout(planned, index, reader.rank) if reader.wants_layout else None
        step = Step(index, planned.epoch, packs, planned.totals, members, self.share_prompts, layout)
        return step.pin_memory() if reader.device is not None and reader.device.type in ASYNCHRONOUS else step

    def _layout(self, planned: StepPlan, index: int, rank: int) -> StepLayout:
        order = self.plan.groups(index)
        held = [
            [group for members in packs[: len(packs) - ghosts] for group in members]
            for packs, ghosts in zip(planned.ranks, planned.ghosts, strict=True)
        ]
        # which of the step's groups each is; one that is drawn twice is held twice
        found = np.empty(len(order), dtype=np.int64)
        found[np.argsort([g for each in held for g in each], kind="stable")] = np.argsort(
            order, kind="stable"
        )
        ranks = np.split(found, np.cumsum([len(each) for each in held])[:-1])
        return lay_out([self.groups[int(i)] for i in order], [each.tolist() for each in ranks], rank)

    def _check(self, reader: Reader) -> None:
        if self.plan.world != reader.world:
            raise RecipeError(
                f"steps: the plan spreads its groups over {self.plan.world} rank(s), but {reader.world} read them. "
                f"Plan with world={reader.world}."
            )
        planned = len(self.plan.sizes.tokens)
        if isinstance(self.groups, Sized) and len(self.groups) != planned:
            raise RecipeError(
                f"steps: {planned} groups were planned, but there are {len(self.groups)}. Plan them anew."
            )


def build_step(
    groups: Sequence[TokenizedGroup],
    index: int,
    *,
    tokens_per_batch: int,
    unit: str = "pairs",
    epoch: int = 0,
    share_prompts: bool = True,
    reader: Reader = ALONE,
) -> Step:
    """Lay groups out as one optimizer step, for sources that make their groups as they go.

    Args:
        groups: all groups of the step; every rank hands in the same ones.
        index: of the step in its source.
        tokens_per_batch: most packed tokens in one forward pass.
        unit: the structure of the loss: "pairs", "responses", "labelled" or "lists".
        epoch: of the step, for the log.
        share_prompts: lay each prompt down once for all its responses.
        reader: as ``Steps.stream`` got it.

    Raises:
        RecipeError: a group alone exceeds ``tokens_per_batch``, or there is no unit.
    """
    plan = Plan.of(
        groups,
        units_per_step=sum(len(group.responses) + len(group.preferences) + 1 for group in groups),
        tokens_per_batch=tokens_per_batch,
        share_prompts=share_prompts,
        unit=unit,
        world=reader.world,
        shuffle=False,
    )
    return replace(PlannedSteps(plan, groups, share_prompts).build(0, reader), index=index, epoch=epoch)


def read(steps: Steps, start: int, stop: int, reader: Reader) -> Generator[Step, None, None]:
    """Read steps ``start`` to ``stop - 1`` of a source, or as many of them as it has, and check each.

    Raises:
        RecipeError: something that is no step, a step before the first one or out of order, without the layout
            that was asked for, or whose totals or layout contradict its packs.
    """
    if start >= stop:
        return
    if start < 0:
        raise RecipeError(
            f"steps: a source counts its steps from 0, but step {start} was asked for. Begin later."
        )
    source = _opened(steps, start, stop, reader)
    try:
        for index, step in zip(range(start, stop), source, strict=False):
            _check(step, index, reader)
            yield step
    finally:
        # generators have one, and so has the loader's thread; other iterators need none
        getattr(source, "close", lambda: None)()


def check_source(steps: object) -> None:
    """Refuse what hands out no steps.

    Raises:
        RecipeError: it has no ``stream``.
    """
    if isinstance(steps, type) or not callable(getattr(steps, "stream", None)):
        raise RecipeError(
            f"steps: a {type(steps).__name__} has no stream(start, stop, reader) that hands out steps. Give "
            f"PlannedSteps(plan, groups), or an object with such a method."
        )


def _opened(steps: Steps, start: int, stop: int, reader: Reader) -> Iterator[Step]:
    check_source(steps)
    source = steps.stream(start, stop, reader)
    if not isinstance(source, Iterable):
        raise RecipeError(
            f"steps: stream of {type(steps).__name__} returned a {type(source).__name__}, not an iterator over "
            f"steps. Yield each Step, or return iter(...) of them."
        )
    return source


def _check(step: Step, index: int, reader: Reader) -> None:
    if not isinstance(step, Step):
        raise RecipeError(
            f"steps: the source handed out a {type(step).__name__} where step {index} belongs. Make a step of "
            f"groups with build_step(groups, index, tokens_per_batch=..., reader=reader)."
        )
    if step.index != index:
        raise RecipeError(
            f"steps: the source was asked for the step of index {index}, but handed out that of index "
            f"{step.index}. Hand out start, start + 1, ... in turn."
        )
    if reader.wants_layout and step.layout is None:
        raise RecipeError(
            f"steps: the loss reads all units of a step at once, but step {index} of the source has no layout. "
            f"Build it with build_step(..., reader=reader), or set Step.layout."
        )
    packs = [batch for batch in step.packs if not batch.is_ghost]
    _check_totals(step.totals, packs, index, reader)
    if step.layout is not None:
        _check_layout(step.layout, packs, index, reader)


def _check_totals(totals: Totals, packs: Sequence[PackedBatch], index: int, reader: Reader) -> None:
    held = (
        ("pairs", totals.pairs, sum(len(batch.pairs) for batch in packs)),
        ("responses", totals.responses, sum(len(of_role(batch, "answer")) for batch in packs)),
        ("groups", totals.groups, sum(len(batch.row_ids) for batch in packs)),
        ("tokens", totals.tokens, sum(batch.num_tokens for batch in packs)),
    )
    for name, said, count in held:
        # what the other ranks hold is not known here
        if count > said or (count < said and reader.world == 1):
            raise RecipeError(
                f"steps: the totals of step {index} say {said} {name}, but its packs hold {count}. Count what "
                f"is packed, over all ranks and without ghosts."
            )


def _check_layout(layout: StepLayout, packs: Sequence[PackedBatch], index: int, reader: Reader) -> None:
    strange = {key for batch in packs for key in batch.keys} - set(layout.batch.keys)
    if strange or layout.counts[reader.rank] != sum(sum(batch.lengths) for batch in packs):
        raise RecipeError(
            f"steps: the layout of step {index} is of other answers than its packs hold. Build both from the same "
            f"groups, as build_step does."
        )
