"""Rationales against sums worked by hand, as a loss and as a transform."""

from dataclasses import replace

import pytest

from prefopt.errors import RecipeError
from prefopt.losses import contract_of, dpo, orpo, rationale, simpo, with_rationale


@pytest.fixture
def explained(up_and_down, answers):
    """D = 2, and a rationale of log-prob -3 over two tokens."""
    policy, reference = up_and_down
    return replace(policy, others={"rationale": answers([[-1.0, -2.0]])}), reference


@pytest.mark.parametrize(
    ("link", "norm", "cost"),
    [
        ("logistic", "sum", 0.854355),
        ("nll", "sum", 0.3),
        ("logistic", "mean", 0.770957),
        ("nll", "mean", 0.15),
    ],
)
def test_likelihood_of_the_rationale_is_added(explained, link, norm, cost):
    """At gamma 0.1: log(1 + e^0.3) = 0.854355, 0.1 * 3, log(1 + e^0.15) = 0.770957, 0.1 * 1.5; DPO 0.598139."""
    output = rationale(*explained, beta=0.1, gamma=0.1, link=link, norm=norm)
    assert output.loss.item() == pytest.approx(0.598139 + cost, abs=2e-6)  # two numbers of six digits
    assert output.metrics["rationale_cost"].item() == pytest.approx(cost, abs=1e-6)
    assert output.chosen_reward.item() == pytest.approx(0.1, rel=1e-15)


def test_the_gradient_reaches_the_rationale(explained):
    """-0.1 * sigmoid(0.3) = -0.0574443 for each of its tokens."""
    policy, reference = explained
    tokens = policy.others["rationale"].tokens.requires_grad_()
    rationale(policy, reference, gamma=0.1).loss.sum().backward()
    assert tokens.grad.tolist() == pytest.approx([-0.0574443] * 2, abs=1e-7)


def test_the_authors_form_on_odds_ratios(explained):
    """RORPO: NLL - [lam * log sigmoid(odds) + log sigmoid(1 * -1.5)], with -log sigmoid(-1.5) = 1.701413."""
    policy, _ = explained
    plain = orpo(policy).loss.item()
    output = with_rationale(orpo, gamma=1.0, norm="mean")(policy)
    assert output.loss.item() == pytest.approx(plain + 1.701413, abs=1e-6)  # six digits are written above
    assert {"nll", "log_odds_ratio", "rationale_cost"} <= output.metrics.keys()


def test_the_transform_asks_for_rationales_of_the_policy():
    for loss in (rationale, with_rationale(dpo), with_rationale(simpo)):
        assert contract_of(loss).roles == ("rationale",)


def test_it_is_applied_once():
    for loss in (rationale, with_rationale(simpo)):
        with pytest.raises(RecipeError, match=r"with_rationale: .* already contains it. Apply it once."):
            with_rationale(loss)
