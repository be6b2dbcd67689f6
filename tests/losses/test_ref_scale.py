"""DPO-gamma against sums worked by hand."""

import pytest

from prefopt.losses import ref_scale


@pytest.fixture
def model_and_reference(pairs):
    """Sums -3 and -5 under the policy, -4 and -1 under the reference."""
    return pairs([[-1.0, -2.0]], [[-5.0]]), pairs([[-2.0, -2.0]], [[-1.0]])


def test_the_reference_counts_by_gamma(model_and_reference):
    """0.1 * ((-3 + 5) - 0.5 * (-4 + 1)) = 0.35; log(1 + e^-0.35) = 0.533382."""
    output = ref_scale(*model_and_reference, beta=0.1, gamma=0.5)
    assert output.loss.item() == pytest.approx(0.533382, abs=1e-6)  # six digits are written above


def test_rewards_are_to_the_scaled_reference(model_and_reference):
    """0.1 * (-3 + 2) and 0.1 * (-5 + 0.5)."""
    output = ref_scale(*model_and_reference, beta=0.1, gamma=0.5)
    assert output.chosen_reward.item() == pytest.approx(-0.1, rel=1e-14)
    assert output.rejected_reward.item() == pytest.approx(-0.45, rel=1e-14)


def test_at_the_start_a_pair_the_reference_ranks_wrongly_has_less_to_make_up(pairs):
    """Policy = reference with sums -4 and -1: margins -3 * (1 - gamma)."""
    start = pairs([[-4.0]], [[-1.0]])
    losses = [ref_scale(start, start, beta=1.0, gamma=gamma).loss.item() for gamma in (0.0, 0.5, 1.0)]
    assert losses == pytest.approx(
        [3.048587, 1.701413, 0.693147], abs=1e-6
    )  # log(1 + e^3), log(1 + e^1.5), log 2
