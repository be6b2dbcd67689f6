"""Metrics are numerators until they are printed."""

from __future__ import annotations

import torch

from prefopt.metrics import Sums, divide, pack_sums
from prefopt.types import LossOutput, PairLogps, SeqLogps


def output(chosen: list[float], rejected: list[float]) -> LossOutput:
    return LossOutput(
        loss=torch.zeros(len(chosen)),
        chosen_reward=torch.tensor(chosen),
        rejected_reward=torch.tensor(rejected),
        metrics={"weight": torch.tensor([0.5] * len(chosen))},
    )


def pairs(count: int) -> PairLogps:
    side = SeqLogps.from_ragged([torch.tensor([-1.0, -2.0])] * count)
    return PairLogps(side, side)


def test_uneven_packs_average_over_pairs_not_over_packs() -> None:
    """Pack 1: margins 1, -1, 0; pack 2: margin 2. Accuracy (1 + 0 + 0.5 + 1) / 4, margin 2 / 4."""
    sums = Sums()
    sums.merge(pack_sums(pairs(3), output([1, 0, 1], [0, 1, 1]), torch.tensor(3.0)))
    sums.merge(pack_sums(pairs(1), output([2], [0]), torch.tensor(1.0)))
    names, vector = sums.vector()
    means = divide(names, vector, 4)
    assert means["reward/accuracy"] == 0.625
    assert means["reward/margin"] == 0.5
    assert means["loss"] == 1.0
    assert means["logps/chosen"] == -3.0
    assert means["weight"] == 0.5


def test_a_ghost_adds_names_and_zeros() -> None:
    """A rank that holds only a ghost still brings the same vector to the collective."""
    real, ghost = Sums(), Sums()
    part = pack_sums(pairs(1), output([2], [float("nan")]), torch.tensor(1.0))
    real.merge(part)
    ghost.merge(part, is_ghost=True)
    assert ghost.vector()[0] == real.vector()[0]
    assert ghost.vector()[1].tolist() == [0.0] * len(real.vector()[0])
