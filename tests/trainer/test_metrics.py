"""Metrics are numerators until they are printed."""

from __future__ import annotations

import torch

from prefopt.trainer.metrics import MetricSums, divide, pack_sums
from prefopt.types import LabelledLogps, ListLogps, LossOutput, PairLogps, SeqLogps


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
    sums = MetricSums()
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
    real, ghost = MetricSums(), MetricSums()
    part = pack_sums(pairs(1), output([2], [float("nan")]), torch.tensor(1.0))
    real.merge(part)
    ghost.merge(part, is_ghost=True)
    assert ghost.vector()[0] == real.vector()[0]
    assert ghost.vector()[1].tolist() == [0.0] * len(real.vector()[0])


def test_labelled_answers_have_means_of_their_own_kind() -> None:
    """Desirable: 3 and 1, mean 2, in two packs; undesirable: -1. Margin 3; log-probs -3 each."""
    first = LabelledLogps(pairs(2).chosen, torch.tensor([True, False]))
    second = LabelledLogps(pairs(1).chosen, torch.tensor([True]))
    sums = MetricSums()
    sums.merge(pack_sums(first, LossOutput(torch.zeros(2), torch.tensor([3.0, -1.0])), torch.tensor(4.0)))
    sums.merge(pack_sums(second, LossOutput(torch.zeros(1), torch.tensor([1.0])), torch.tensor(2.0)))
    means = divide(*sums.vector(), 3)
    assert means == {
        "loss": 2.0,
        "logps/desirable": -3.0,
        "logps/undesirable": -3.0,
        "reward/desirable": 2.0,
        "reward/undesirable": -1.0,
        "reward/margin": 3.0,
    }


def test_a_step_without_undesirable_answers_has_no_mean_of_them() -> None:
    side = LabelledLogps(pairs(1).chosen, torch.tensor([True]))
    part = pack_sums(side, LossOutput(torch.zeros(1), torch.tensor([1.0])), torch.tensor(2.0))
    means = divide(*part.vector(), 1)
    assert means.keys() == {"loss", "logps/desirable", "reward/desirable"}


def test_a_ghost_of_labelled_answers_counts_none() -> None:
    sums = MetricSums()
    side = LabelledLogps(pairs(1).chosen, torch.tensor([True]))
    part = pack_sums(side, LossOutput(torch.zeros(1), torch.tensor([1.0])), torch.tensor(2.0))
    sums.merge(part)
    sums.merge(part, is_ghost=True)
    assert divide(*sums.vector(), 1) == divide(*part.vector(), 1)


def test_lists_are_averaged_over_groups_and_their_answers_over_answers() -> None:
    """Groups of 2 and 1 answers of -3 nats: the mean log-prob is -3, the best answers' reward (1 + 2) / 2."""
    lists = ListLogps(pairs(3).chosen, (2, 1))
    means = divide(*pack_sums(lists, output([1, 2], [0, 0]), torch.tensor(5.0)).vector(), 2)
    assert means["logps/answers"] == -3.0
    assert means["reward/chosen"] == 1.5
    assert means["reward/accuracy"] == 1.0
    assert means["loss"] == 2.5
