"""What log-probs are built from: what is missing or does not fit is said in one line."""

from __future__ import annotations

from copy import deepcopy
from math import log

import pytest
import torch

from prefopt.losses import functional, kto, tdpo, triple, wpo
from prefopt.types import LabelledLogps, PairLogps, SeqLogps

MASK = torch.ones(4, 3)


def answers(count: int = 4) -> SeqLogps:
    return SeqLogps.from_padded(-torch.rand(count, 3), torch.ones(count, 3))


def pairs() -> PairLogps:
    return PairLogps.from_concatenated(-torch.rand(4, 3), MASK)


def sides() -> LabelledLogps:
    return LabelledLogps(answers(), torch.tensor([True, False, True, True]))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: tdpo(pairs(), pairs()),
            r"^SeqLogps\.stats: .* 'kl', .*from_padded\(logps, mask, kl=\.\.\.\)\.$",
        ),
        (lambda: wpo(pairs(), pairs()), r"^SeqLogps\.stats: .* 'log_sum_p2', which was not given\. "),
        (lambda: triple(pairs()), r"^PairLogps\.others: .* 'gold', .* others=\{'gold': \.\.\.\}\.$"),
        (lambda: kto(sides(), sides()), r"^LabelledLogps\.others: .* 'kl', .* others=\{'kl': \.\.\.\}\.$"),
    ],
    ids=["statistic", "statistic of a head", "third answer", "mismatched answers"],
)
def test_what_a_loss_reads_and_was_not_given_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_what_was_given_is_read_as_before():
    stats = SeqLogps.from_padded(-torch.rand(4, 3), MASK, kl=torch.ones(4, 3)).stats
    assert list(stats) == ["kl"] and "entropy" not in stats and stats.get("entropy") is None
    assert torch.equal(deepcopy(stats)["kl"], torch.ones(12))


@pytest.mark.parametrize("shape", [(1,), (3,), (4, 1)])
def test_every_answer_has_a_label(shape):
    """A single label would stand for all four by broadcasting."""
    with pytest.raises(ValueError, match=r"^LabelledLogps: is_desirable has shape .* for 4 answers\."):
        LabelledLogps(answers(), torch.ones(shape, dtype=torch.bool))


def test_the_way_to_triple_that_functional_names_works():
    """A margin of none and a gold answer that is not read: log 2."""
    with pytest.raises(AttributeError, match=r"PairLogps\(chosen, rejected, \{'gold': gold\}\)"):
        functional.triple_loss  # noqa: B018
    side = answers(2)
    assert triple(PairLogps(side, side, {"gold": side}), alpha=0.0).loss.tolist() == pytest.approx(
        [log(2.0)] * 2
    )
