"""Reverse PO against sums worked by hand."""

import pytest
import torch

from prefopt.losses import reverse


def margins(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_every_constraint_asks_for_more_margin(up_and_down):
    """0.1 * 2 - 0.1 * 3 = -0.1; log(1 + e^0.1) = 0.744397."""
    output = reverse(*up_and_down, pair_margin=margins(3.0), beta=0.1, gamma=0.1)
    assert output.loss.item() == pytest.approx(0.744397, abs=1e-6)  # six digits are written above
    assert output.chosen_reward.item() == pytest.approx(0.1, rel=1e-15)
    assert output.rejected_reward.item() == pytest.approx(-0.1, rel=1e-15)


def test_each_pair_has_its_own_margin(pairs):
    """Both at D = 2: 0.2 - 0.1 * 0 costs 0.598139, 0.2 - 0.1 * 1 costs 0.644397."""
    policy, reference = pairs([[2.0], [2.0]], [[0.0], [0.0]]), pairs([[0.0], [0.0]], [[0.0], [0.0]])
    loss = reverse(policy, reference, pair_margin=margins(0.0, 1.0), beta=0.1, gamma=0.1).loss
    assert loss.tolist() == pytest.approx([0.598139, 0.644397], abs=1e-6)  # six digits are written above
