"""ORPO against sums worked by hand."""

import math

import pytest
import torch

from prefopt.losses import orpo, sft
from prefopt.types import PairLogps


@pytest.fixture
def policy(pairs):
    """Mean probabilities 1/2 and 1/4: odds 1 and 1/3."""
    return pairs([[2.0 * math.log(0.5), 0.0]], [[math.log(0.25)]])


def test_likelihood_and_log_odds_ratio(policy):
    """With r = log 3: -log sigmoid = log(4 / 3) = 0.287682, times 0.5; NLL log 2 = 0.693147; together 0.836988."""
    output = orpo(policy, lam=0.5)
    assert output.loss.item() == pytest.approx(0.836988, abs=1e-6)  # six digits are written above
    assert output.metrics["log_odds_ratio"].item() == pytest.approx(math.log(3.0), rel=1e-14)
    assert output.metrics["nll"].item() == pytest.approx(math.log(2.0), rel=1e-15)
    assert output.chosen_reward.item() == pytest.approx(0.5 * math.log(0.5), rel=1e-15)
    assert output.rejected_reward.item() == pytest.approx(0.5 * math.log(0.25), rel=1e-15)


def test_without_the_penalty_it_is_supervised_fine_tuning(policy):
    assert orpo(policy, lam=0.0).loss.item() == sft(policy.chosen).loss.item()


def test_gradient_of_the_rejected_answer(policy):
    """Each nat of a_rejected takes 1 / (1 - 1/4) = 4/3 off r: lam * sigmoid(-log 3) * 4/3 = 0.5 / 4 * 4/3 = 1/6."""
    policy.rejected.tokens.requires_grad_()
    orpo(policy, lam=0.5).loss.sum().backward()
    assert policy.rejected.tokens.grad.item() == pytest.approx(1.0 / 6.0, rel=1e-14)


def test_likelihood_over_the_tokens_of_the_step(policy):
    """Mean length 4: 0.5 * 0.287682 + 2 * 0.693147 / 4 = 0.490415."""
    length = torch.tensor(4.0, dtype=torch.float64)
    loss = orpo(policy, lam=0.5, nll="batch_token", mean_chosen_length=length).loss
    assert loss.item() == pytest.approx(0.490415, abs=1e-6)  # six digits are written above


@pytest.mark.parametrize("mean", [0.0, -1e-30, -1e-7, -1e4])
def test_nearly_certain_and_hopeless_answers_stay_finite(answers, mean):
    """Where log(1 - exp(a)) in float32 is -inf from a = -3e-8 on."""
    side = answers([[mean]])
    policy = torch.tensor([mean], dtype=torch.float32, requires_grad=True)
    one = type(side)(tokens=policy, lengths=(1,))
    other = type(side)(tokens=torch.tensor([-1.0]), lengths=(1,))
    for chosen, rejected in ((one, other), (other, one)):
        loss = orpo(PairLogps(chosen, rejected)).loss
        (gradient,) = torch.autograd.grad(loss.sum(), policy)
        assert torch.isfinite(loss).all()
        assert torch.isfinite(gradient).all()
