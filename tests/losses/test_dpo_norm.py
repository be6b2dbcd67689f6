"""Length-normalised DPO against sums worked by hand."""

import pytest

from prefopt.losses import dpo, dpo_norm


def test_margin_of_mean_log_ratios(up_and_down):
    """0.2 * (1 / 2 + 1 / 1) = 0.3; log(1 + e^-0.3) = 0.554355. Rewards 0.2 * 0.5 and 0.2 * -1."""
    output = dpo_norm(*up_and_down, beta=0.2)
    assert output.loss.item() == pytest.approx(0.554355, abs=1e-6)  # six digits are written above
    assert output.chosen_reward.item() == pytest.approx(0.1, rel=1e-15)
    assert output.rejected_reward.item() == pytest.approx(-0.2, rel=1e-15)


def test_repeating_every_token_changes_nothing(pairs, up_and_down):
    longer = [
        pairs([side.chosen.tokens.tolist() * 2], [side.rejected.tokens.tolist() * 3]) for side in up_and_down
    ]
    assert dpo_norm(*longer).loss.item() == pytest.approx(dpo_norm(*up_and_down).loss.item(), rel=1e-15)


def test_answers_of_one_token_make_it_dpo(pairs):
    policy, reference = pairs([[-1.0]], [[-5.0]]), pairs([[-2.0]], [[-4.0]])
    for smoothing in (0.0, 0.2):
        one = dpo_norm(policy, reference, beta=0.1, label_smoothing=smoothing).loss
        assert one.item() == dpo(policy, reference, beta=0.1, label_smoothing=smoothing).loss.item()
