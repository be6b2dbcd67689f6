"""LifeAlign's focal form against sums worked by hand, and its direction beside FocalPO's."""

import pytest

from prefopt.losses import dpo, focal, focal_hard


def at_margin(pairs, margin):
    """One pair whose margin at beta 1 is ``margin``."""
    return pairs([[margin]], [[0.0]]), pairs([[0.0]], [[0.0]])


def test_loss_is_dpo_times_the_square_of_the_other_probability(pairs):
    """At m = 0.2: 0.450166^2 * 0.598139 = 0.121213; at m = -0.2: 0.549834^2 * 0.798139 = 0.241291."""
    policy, reference = pairs([[2.0], [-2.0]], [[0.0], [0.0]]), pairs([[0.0], [0.0]], [[0.0], [0.0]])
    output = focal_hard(policy, reference, beta=0.1)
    assert output.loss.tolist() == pytest.approx([0.121213, 0.241291], abs=1e-6)  # digits written above
    assert output.chosen_reward.tolist() == pytest.approx([0.2, -0.2], rel=1e-15)


def test_well_ranked_pairs_weigh_less_where_focal_weighs_them_more(pairs):
    shares = []
    for loss in (focal_hard, focal):
        right, wrong = (
            loss(*at_margin(pairs, m), beta=1.0).loss / dpo(*at_margin(pairs, m), beta=1.0).loss
            for m in (3.0, -3.0)
        )
        shares.append((right / wrong).item())
    assert shares[0] < 1.0 < shares[1]


@pytest.mark.parametrize("margin", [-20.0, -3.0, 0.0, 3.0, 20.0])
@pytest.mark.parametrize("gamma", [0.5, 2.0, 10.0])
def test_the_gradient_never_turns_round(pairs, margin, gamma):
    """d/dm of -(1 - p)^g log p is (1 - p)^g (g p log p - (1 - p)), below 0 for any p."""
    policy, reference = at_margin(pairs, margin)
    policy.chosen.tokens.requires_grad_()
    focal_hard(policy, reference, beta=1.0, gamma=gamma).loss.sum().backward()
    assert policy.chosen.tokens.grad.item() < 0.0
