"""Say where every scored token of an optimizer step lies, for losses that read the whole step at once.

Such a loss wants its units in the order of the plan, which no rank holds: each has some of the groups, in
the order of its packs. As every rank knows the whole plan, none need ask another. Three groups A, B, C
with 2, 3 and 2 scored tokens on two ranks:

    the plan's order              a1 a2   b1 b2 b3   c1 c2
    rank 0 packs C, then A        c1 c2   a1 a2
    rank 1 packs B                                   b1 b2 b3
    all ranks, end to end         c1 c2   a1 a2      b1 b2 b3
                                   0  1    2  3       4  5  6

so a1 is found at place 2, b1 at 4 and c1 at 0; rank 1's tokens begin at 4:

>>> from prefopt.data.packs.pack import group_of
>>> a, b, c = (group_of([9], answers) for answers in ([[1], [2]], [[3, 4], [5]], [[6], [7]]))
>>> layout = lay_out([a, b, c], ranks=[[2, 0], [1]], rank=1)
>>> layout.places.tolist()
[2, 3, 4, 5, 6, 0, 1]
>>> layout.counts, layout.start
((4, 3), 4)
>>> layout.batch.target_ids.tolist()
[1, 2, 3, 4, 5, 6, 7]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import torch

from prefopt.data.packs.pack import pack
from prefopt.types import StepLayout, TokenizedGroup


def lay_out(groups: Sequence[TokenizedGroup], ranks: Sequence[Sequence[int]], rank: int = 0) -> StepLayout:
    """Find out where the scored tokens of one optimizer step lie.

    Args:
        groups: all groups of the step, in the plan's order.
        ranks: [world] which of ``groups`` each rank holds, in the order of its packs, ghosts left out; each
            group is held once.
        rank: who asks.
    """
    batch = pack(groups)
    slots = np.argsort(np.fromiter(chain.from_iterable(ranks), dtype=np.int64))  # [G], of each group
    tokens = np.add.reduceat(np.array(batch.lengths, dtype=np.int64), batch.groups[:-1])  # of each group
    in_slots = np.empty_like(tokens)
    in_slots[slots] = tokens
    ends = np.concatenate([[0], np.cumsum(in_slots)])
    places = np.arange(tokens.sum()) + np.repeat(ends[slots] - (np.cumsum(tokens) - tokens), tokens)
    starts = ends[np.cumsum([0, *map(len, ranks)])]  # of each rank, and the end of the last
    return StepLayout(
        # the tokens themselves never meet the model, so they stay behind
        batch=replace(batch, input_ids=batch.input_ids[:0], position_ids=batch.position_ids[:0]),
        places=torch.from_numpy(places),
        counts=tuple(np.diff(starts).tolist()),
        start=int(starts[rank]),
    )
