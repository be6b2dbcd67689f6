"""Build the packs of coming steps on a thread while the current step computes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from prefopt.data.pack import pack
from prefopt.data.plan import Plan
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
    ahead: int = 2,
) -> Iterator[Step]:
    """Yield this rank's steps ``start`` to ``stop - 1`` in order, ``ahead`` of them built beforehand."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefopt-pack") as pool:
        pending = [
            pool.submit(build_step, plan, groups, index, rank=rank, share_prompts=share_prompts)
            for index in range(start, min(start + ahead, stop))
        ]
        for index in range(start, stop):
            step = pending.pop(0).result()
            if index + ahead < stop:
                pending.append(
                    pool.submit(
                        build_step, plan, groups, index + ahead, rank=rank, share_prompts=share_prompts
                    )
                )
            yield step
