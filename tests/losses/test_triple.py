"""Triple PO against sums worked by hand."""

from dataclasses import replace

import pytest

from prefopt.errors import RecipeError
from prefopt.losses import bound, contract_of, triple


@pytest.fixture
def policy(up_and_down, answers):
    """Sums -3 over two tokens and -5 over one; a gold answer of mean -2."""
    return replace(up_and_down[0], others={"gold": answers([[-1.0, -3.0]])})


def test_difference_of_the_pair_and_likelihood_of_the_gold_answer(policy):
    """0.1 * 2 costs 0.598139; 0.25 * 2 = 0.5; together 1.098139."""
    output = triple(policy, beta=0.1, alpha=0.25)
    assert output.loss.item() == pytest.approx(1.098139, abs=1e-6)  # six digits are written above
    assert output.metrics["gold_nll"].tolist() == [2.0]
    assert output.chosen_reward.item() == pytest.approx(-0.3, rel=1e-15)


def test_means_with_a_target_margin(policy):
    """(-1.5 + 5) - 3 = 0.5 costs 0.474077; gold 2; together 2.474077."""
    output = triple(policy, beta=1.0, gamma=3.0, norm="mean")
    assert output.loss.item() == pytest.approx(2.474077, abs=1e-6)
    assert output.chosen_reward.item() == pytest.approx(-1.5, rel=1e-15)


def test_label_smoothing_mixes_in_the_flipped_label(policy):
    """0.75 * 0.598139 + 0.25 * 0.798139 = 0.648139."""
    loss = triple(policy, beta=0.1, alpha=0.0, label_smoothing=0.25).loss
    assert loss.item() == pytest.approx(0.648139, abs=1e-6)


def test_the_chosen_answer_is_not_imitated(policy):
    """The likelihood term reaches gold tokens alone: -alpha / length each; chosen ones get -0.1 * sigmoid(-0.2)."""
    policy.chosen.tokens.requires_grad_()
    policy.others["gold"].tokens.requires_grad_()
    triple(policy, beta=0.1, alpha=0.25).loss.sum().backward()
    assert policy.others["gold"].tokens.grad.tolist() == [-0.125, -0.125]
    assert policy.chosen.tokens.grad.tolist() == pytest.approx([-0.0450166] * 2, abs=1e-7)


def test_it_asks_for_gold_answers_and_no_reference():
    contract = contract_of(triple)
    assert contract.roles == ("gold",)
    assert not contract.needs_reference


def test_the_hinge_asks_for_one_beyond_gamma(policy):
    """1 - (0.1 * 2 - 0.5) = 1.3, and the gold answer's 2."""
    assert triple(policy, beta=0.1, gamma=0.5, link="hinge").loss.item() == pytest.approx(3.3, rel=1e-15)


def test_ipo_holds_the_difference_to_its_target(policy):
    """1 / (2 * 0.2) = 2.5 is asked for: (2 - 2.5)^2 of sums, (3.5 - 2.5)^2 of means, and the gold answer's 2."""
    assert triple(policy, beta=0.2, link="ipo").loss.item() == pytest.approx(2.25, rel=1e-15)
    assert triple(policy, beta=0.2, link="ipo", norm="mean").loss.item() == pytest.approx(3.0, rel=1e-15)


@pytest.mark.parametrize(
    ("setting", "link"), [("label_smoothing", "hinge"), ("label_smoothing", "ipo"), ("gamma", "ipo")]
)
def test_what_a_link_does_not_read_is_refused_beside_it(setting, link):
    with pytest.raises(RecipeError, match=rf"triple.{setting}: 0.1 has no effect with link: {link}"):
        bound(triple, link=link, **{setting: 0.1})
