"""Arithmetic shared by the losses over lists: groups of unequal size as the rows of one table."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from prefopt.losses._terms import stop
from prefopt.ragged import on_device
from prefopt.types import ListLogps, LossOutput


class Grid:
    """The answers of G groups laid out as a table [G, K], K being the size of the largest group.

    ``mask`` [G, K] is true where there is an answer.
    """

    def __init__(self, lists: ListLogps) -> None:
        sizes = np.asarray(lists.group_sizes)
        columns = np.arange(sizes.max())
        mask = columns < sizes[:, None]
        # a hole points at the first answer of all, and what is read there is then thrown away
        index = np.where(mask, np.cumsum(sizes)[:, None] - sizes[:, None] + columns, 0)
        device = lists.answers.tokens.device
        self.mask = on_device(torch.from_numpy(mask), device)
        self._index = on_device(torch.from_numpy(index), device)

    def lay(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """Lay one value per answer, [S], out as [G, K] with ``fill`` where there is none."""
        return torch.where(self.mask, values[self._index], fill)

    def best_first(self, scores: Tensor) -> Tensor:
        """Return the columns of each row by falling score, int64 [G, K]; equals keep their order, holes come last."""
        return self.lay(scores, -torch.inf).argsort(dim=1, descending=True, stable=True)

    def count(self, dtype: torch.dtype) -> Tensor:
        """Return the answers of each group, [G]."""
        return self.mask.sum(dim=1).to(dtype)

    def is_better(self, scores: Tensor) -> Tensor:
        """Return whether answer i of a row has a higher score than answer j, bool [G, K, K]."""
        table = self.lay(scores)
        both = self.mask[:, :, None] & self.mask[:, None, :]
        return (table[:, :, None] > table[:, None, :]) & both

    def log_softmax(self, values: Tensor) -> Tensor:
        """Return the log-softmax of each group's values [S] within the group, [G, K]; 0 where there is no answer."""
        table = self.lay(values, -torch.inf)
        return torch.where(self.mask, table - table.logsumexp(dim=1, keepdim=True), 0.0)


def with_list_rewards(loss: Tensor, grid: Grid, rewards: Tensor, scores: Tensor) -> LossOutput:
    """Pack a loss over lists with what it compared.

    Args:
        loss: [G]; NaN is paid where a score is.
        grid: of the lists.
        rewards: [S], the implicit reward of every answer.
        scores: [S], of the data.

    Returns:
        The reward of the best answer as ``chosen_reward`` [G], the mean of all others' as ``rejected_reward``
        [G], and the metric ``ranking_accuracy`` [G]: the share of pairs with unequal scores that the rewards
        put in the same order, half of it where they are equal.
    """
    table = grid.lay(stop(rewards))
    best = table.gather(1, grid.best_first(scores)[:, :1])[:, 0]
    others = (table.sum(dim=1) - best) / (grid.count(table.dtype) - 1).clamp(min=1)
    better = grid.is_better(scores)
    gap = table[:, :, None] - table[:, None, :]
    agreed = (0.5 + 0.5 * gap.sign()) * better
    share = agreed.sum(dim=(1, 2)) / better.sum(dim=(1, 2)).clamp(min=1)
    # a score that is NaN would be ranked somewhere by whoever sorts it
    unranked = grid.lay(scores).isnan().any(dim=1)
    return LossOutput(
        loss=torch.where(unranked, torch.nan, loss),
        chosen_reward=best,
        rejected_reward=others,
        metrics={"ranking_accuracy": share},
    )
