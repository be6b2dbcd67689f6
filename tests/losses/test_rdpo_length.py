"""R-DPO against sums worked by hand, and the direction in which length acts."""

import pytest

from prefopt.losses import rdpo_length


def test_extra_tokens_of_the_chosen_answer_count_as_margin(up_and_down):
    """0.1 * 2 + 0.3 * (2 - 1) = 0.5; log(1 + e^-0.5) = 0.474077."""
    output = rdpo_length(*up_and_down, beta=0.1, alpha=0.3)
    assert output.loss.item() == pytest.approx(0.474077, abs=1e-6)  # six digits are written above
    assert output.chosen_reward.item() == pytest.approx(0.1, rel=1e-15)
    assert output.rejected_reward.item() == pytest.approx(-0.1, rel=1e-15)


def test_extra_tokens_of_the_rejected_answer_take_margin_away(pairs):
    """Sums 0 and -2 against zeros: 0.1 * 2 + 0.1 * (1 - 4) = -0.1; log(1 + e^0.1) = 0.744397."""
    policy, reference = pairs([[0.0]], [[-0.5] * 4]), pairs([[0.0]], [[0.0] * 4])
    loss = rdpo_length(policy, reference, beta=0.1, alpha=0.1).loss
    assert loss.item() == pytest.approx(0.744397, abs=1e-6)  # six digits are written above


def slope(pairs, num_extra: int) -> float:
    """Gradient at the first chosen token, for a chosen answer that is so many tokens longer."""
    length = 1 + max(num_extra, 0), 1 - min(num_extra, 0)
    policy = pairs([[0.0] * length[0]], [[0.0] * length[1]])
    policy.chosen.tokens.requires_grad_()
    reference = pairs([[0.0] * length[0]], [[0.0] * length[1]])
    rdpo_length(policy, reference, beta=1.0, alpha=0.2).loss.sum().backward()
    return policy.chosen.tokens.grad[0].item()


def test_the_longer_the_chosen_answer_the_weaker_the_pull(pairs):
    """At D = 0 the slope is -sigmoid(-0.2 * extra): its size falls as the chosen answer grows."""
    slopes = [slope(pairs, num_extra) for num_extra in (-2, -1, 0, 1, 2)]
    assert slopes == sorted(slopes)
    assert slopes[2] == pytest.approx(-0.5, rel=1e-15)
    assert slopes[3] == pytest.approx(-0.450166, abs=1e-6)
