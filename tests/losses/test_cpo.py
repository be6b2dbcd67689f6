"""CPO against sums worked by hand."""

import pytest
import torch

from prefopt.errors import RecipeError
from prefopt.losses import bound, cpo, dpo, weighted, with_nll


@pytest.fixture
def policy(up_and_down):
    """Sums -3 over two tokens and -5 over one."""
    return up_and_down[0]


def test_difference_of_log_probs_and_likelihood_of_the_chosen(policy):
    """0.1 * (-3 + 5) = 0.2 costs 0.598139; NLL 3 / 2 at alpha 0.5: 0.75; together 1.348139."""
    output = cpo(policy, beta=0.1, alpha=0.5)
    assert output.loss.item() == pytest.approx(1.348139, abs=1e-6)  # six digits are written above
    assert output.metrics["nll"].tolist() == [1.5]
    assert output.chosen_reward.item() == pytest.approx(-0.3, rel=1e-15)
    assert output.rejected_reward.item() == pytest.approx(-0.5, rel=1e-15)


def test_likelihood_over_the_tokens_of_the_step(policy):
    """Mean length 4: 0.598139 + 3 / 4 = 1.348139."""
    length = torch.tensor(4.0, dtype=torch.float64)
    output = cpo(policy, nll="batch_token", mean_chosen_length=length)
    assert output.loss.item() == pytest.approx(1.348139, abs=1e-6)
    with pytest.raises(ValueError, match="nll='batch_token': mean_chosen_length is missing"):
        cpo(policy, nll="batch_token")


def test_label_smoothing_mixes_in_the_flipped_label(policy):
    """0.75 * 0.598139 + 0.25 * 0.798139 = 0.648139."""
    loss = cpo(policy, alpha=0.0, label_smoothing=0.25).loss
    assert loss.item() == pytest.approx(0.648139, abs=1e-6)


def test_it_is_dpo_with_likelihood_against_a_reference_that_finds_all_alike(policy, pairs):
    flat = pairs([[0.0, 0.0]], [[0.0]])
    expected = with_nll(bound(dpo, beta=0.3), alpha=0.7)(policy, flat)
    assert cpo(policy, beta=0.3, alpha=0.7).loss.item() == expected.loss.item()


def test_it_contains_its_likelihood_term_and_takes_a_weight_around_both():
    with pytest.raises(RecipeError, match=r"with_nll: cpo already contains it. Apply it once."):
        with_nll(cpo)
    assert weighted(cpo).__name__ == "weighted(cpo)"


def test_the_hinge_pays_what_the_margin_falls_short_of_one(policy):
    """1 - 0.1 * 2 = 0.8, and the NLL 1.5; nothing of the first beyond 1."""
    assert cpo(policy, link="hinge").loss.item() == pytest.approx(2.3, rel=1e-15)
    assert cpo(policy, beta=0.5, link="hinge").loss.tolist() == [1.5]


def test_ipo_holds_the_difference_of_means_to_its_target(policy):
    """(-1.5 + 5 - 1 / (2 * 0.25))^2 = 2.25, and half the NLL of 1.5."""
    output = cpo(policy, beta=0.25, alpha=0.5, link="ipo")
    assert output.loss.tolist() == [3.0]
    assert output.chosen_reward.tolist() == [-0.375]
    assert output.rejected_reward.tolist() == [-1.25]


@pytest.mark.parametrize("link", ["hinge", "ipo"])
def test_links_that_are_not_smoothed_refuse_a_smoothing(link):
    with pytest.raises(RecipeError, match=rf"cpo.label_smoothing: 0.1 has no effect with link: {link}"):
        bound(cpo, link=link, label_smoothing=0.1)
