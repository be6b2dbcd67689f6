"""Build the packs of coming steps on a thread while the current step computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

import torch

from prefopt.data.packs.pack import pack
from prefopt.data.packs.plan import Plan
from prefopt.ragged import ASYNCHRONOUS
from prefopt.types import Step, TokenizedGroup


class Groups(Protocol):
    """Anything that hands out groups by index: a list, or a table on disk."""

    def __getitem__(self, index: int, /) -> TokenizedGroup: ...


def build_step(plan: Plan, groups: Groups, index: int, *, rank: int = 0, share_prompts: bool = True) -> Step:
    """Build this rank's packs of optimizer step ``index``."""
    planned = plan.step(index)
    mine, num_ghosts = planned.ranks[rank], planned.ghosts[rank]
    packs = tuple(
        pack([groups[i] for i in members], share_prompts=share_prompts, is_ghost=at >= len(mine) - num_ghosts)
        for at, members in enumerate(mine)
    )
    return Step(index=index, epoch=planned.epoch, packs=packs, totals=planned.totals)


def stream(
    plan: Plan,
    groups: Groups,
    *,
    start: int,
    stop: int,
    rank: int = 0,
    share_prompts: bool = True,
    device: torch.device | None = None,
    ahead: int = 2,
) -> Iterator[Step]:
    """Yield this rank's steps ``start`` to ``stop - 1`` in order, ``ahead`` of them built beforehand.

    What goes wrong while a step is built is raised when that step's turn comes. Closing the iterator
    ends the thread.

    Args:
        plan: which groups meet in which step.
        groups: hands out a group by index.
        start: first step.
        stop: one after the last step.
        rank: whose packs.
        share_prompts: lay each prompt down once for all its responses.
        device: where the packs will be moved. For a GPU they lie in pinned memory, so that
            ``PackedBatch.to(device, non_blocking=True)`` returns at once.
        ahead: how many steps to keep ready.
    """
    pins = device is not None and device.type in ASYNCHRONOUS

    def build(index: int) -> Step:
        step = build_step(plan, groups, index, rank=rank, share_prompts=share_prompts)
        return replace(step, packs=tuple(batch.pin_memory() for batch in step.packs)) if pins else step

    def enter() -> None:
        # a new thread has the first GPU current, and pinning would open a context there on every rank
        if device is not None and device.type == "cuda":
            torch.cuda.set_device(device)

    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefopt-pack", initializer=enter)
    pending: deque[Future[Step]] = deque()
    try:
        for index in range(start, stop):
            while len(pending) < min(ahead, stop - index):
                pending.append(pool.submit(build, index + len(pending)))
            step = pending.popleft().result()
            if index + ahead < stop:
                pending.append(pool.submit(build, index + ahead))
            yield step
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
