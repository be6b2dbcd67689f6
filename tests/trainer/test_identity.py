"""The check of the first step, with differences worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
import toy

from prefopt.data.packs.pack import pack
from prefopt.errors import ModelError
from prefopt.structures.pairs import PAIRS
from prefopt.trainer.identity import LARGEST_GAP, check_logps, check_loss
from prefopt.types import SeqLogps

BATCH = pack(toy.groups(2))


def logps(*totals: float) -> SeqLogps:
    return SeqLogps(torch.tensor(totals, dtype=torch.float64), (1,) * len(totals))


def test_losses_are_compared_absolute_plus_relative() -> None:
    """0.75 against 0.5: 0.25 / 1.5 = 1 / 6. At most 0.05 is let through in bfloat16."""
    expected, off = torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.56])
    assert check_loss(PAIRS, BATCH, off, expected, torch.bfloat16) == pytest.approx(0.04, rel=1e-6)
    with pytest.raises(
        ModelError, match=r"toy.jsonl:2: .* the loss is 0.75 where equal log-probs give 0.5. Check"
    ):
        check_loss(PAIRS, BATCH, torch.tensor([0.5, 0.75]), expected, torch.bfloat16)


def test_log_probs_count_as_much_as_they_move_dpo() -> None:
    """An answer 0.2 nats off moves DPO at beta 0.1 by 0.1 * 0.2 / 2 = 0.01, of 1 + log 2."""
    one, other = logps(-3.0, -4.0, -5.0, -6.0), logps(-3.0, -4.0, -5.0, -6.2)
    found = check_logps(BATCH, one, other, torch.bfloat16)
    assert found == pytest.approx(0.01 / (1 + math.log(2)), rel=1e-12)
    with pytest.raises(
        ModelError, match=r"toy.jsonl:2: .* is -6 under the policy and -6.2 under the reference"
    ):
        check_logps(BATCH, one, other, torch.float32)
    assert LARGEST_GAP[torch.float32] < found < LARGEST_GAP[torch.bfloat16]
