"""beta-DPO against sums worked by hand."""

import math

import pytest
import torch

from prefopt.losses import beta_dynamic, dpo


def cost(margin):
    return math.log1p(math.exp(-margin))


@pytest.fixture
def gaps(pairs):
    """Build policy and reference whose pairs have these D."""

    def build(*values):
        zero = [[0.0]] * len(values)
        return pairs([[value] for value in values], zero), pairs(zero, zero)

    return build


def seeds(count):
    return torch.arange(count) * 7919 + 1


def test_the_first_step_has_an_average_beta(gaps):
    """D = 1 and 3 with nothing left out: their mean is the average, so beta stays 0.1."""
    output = beta_dynamic(*gaps(1.0, 3.0), pair_seed=seeds(2), rho=0.0)
    assert output.loss.tolist() == pytest.approx([cost(0.1), cost(0.3)], rel=1e-12)
    assert output.metrics["beta"].tolist() == pytest.approx([0.1, 0.1], rel=1e-12)
    assert output.carried["gap_mean"].item() == 2
    assert output.carried["gap_std"].item() == pytest.approx(math.sqrt(2))


def test_wide_gaps_raise_beta(gaps):
    """After a mean of 2, D = 4 and 6: m = 0.9 * 2 + 0.1 * 5 = 2.3, b = 0.1 * (1 + 0.6 * 2.7) = 0.262."""
    first = beta_dynamic(*gaps(1.0, 3.0), pair_seed=seeds(2), rho=0.0)
    output = beta_dynamic(*gaps(4.0, 6.0), pair_seed=seeds(2), rho=0.0, **first.carried)
    assert output.metrics["beta"].tolist() == pytest.approx([0.262] * 2, rel=1e-12)
    assert output.loss.tolist() == pytest.approx([cost(0.262 * 4), cost(0.262 * 6)], rel=1e-12)
    assert output.chosen_reward.tolist() == pytest.approx([0.4, 0.6], rel=1e-12)  # at the setting's own beta


def test_beta_stays_above_a_thousandth(gaps):
    """D = -90 and -110 after a mean of 2: 1 + 0.6 * (-100 + 8.2) is far below zero."""
    first = beta_dynamic(*gaps(1.0, 3.0), pair_seed=seeds(2), rho=0.0)
    output = beta_dynamic(*gaps(-90.0, -110.0), pair_seed=seeds(2), rho=0.0, **first.carried)
    assert output.metrics["beta"].tolist() == [0.001, 0.001]
    assert output.loss.tolist() == pytest.approx([cost(-0.09), cost(-0.11)], rel=1e-12)


def test_the_mean_over_all_pairs_is_that_over_the_kept(gaps):
    """Four of five are kept, so each counts 5 / 4, and the one left out costs nothing."""
    output = beta_dynamic(*gaps(0.5, 1.0, 1.5, 2.0, 2.5), pair_seed=seeds(5), rho=0.2, alpha=0.0)
    kept = output.metrics["kept"]
    assert sorted(kept.tolist()) == [0, 1, 1, 1, 1]
    plain = dpo(*gaps(0.5, 1.0, 1.5, 2.0, 2.5), beta=0.1).loss
    assert torch.allclose(output.loss, plain * kept * 5 / 4, rtol=1e-12)
    assert output.loss.mean().item() == pytest.approx(plain[kept.bool()].mean().item(), rel=1e-12)


@pytest.mark.parametrize(
    ("count", "rho", "kept"),
    [(10, 0.3, 7), (100, 0.43, 57), (5, 0.2, 4), (1, 0.9, 1), (3, 0.5, 1), (64, 0.2, 51)],
)
def test_the_kept_share_is_rounded_down_and_never_nothing(gaps, count, rho, kept):
    """10 * (1 - 0.3) is 7, and 100 * (1 - 0.43) is 57, whatever binary fractions say."""
    drawn = gaps(*torch.linspace(0, 1, count).tolist())
    assert beta_dynamic(*drawn, pair_seed=seeds(count), rho=rho).metrics["kept"].sum().item() == kept


def test_outliers_are_left_out_first(gaps):
    """One D of 50 among nineteen near 1: z = 4.1, weight e^-8.6; it is kept in 1 of 400 seeds or so."""
    values = [*torch.linspace(0.9, 1.1, 19).tolist(), 50.0]
    kept = [
        beta_dynamic(*gaps(*values), pair_seed=seeds(20) + 1_000_003 * trial, rho=0.05)
        .metrics["kept"][-1]
        .item()
        for trial in range(40)
    ]
    assert sum(kept) <= 4


def test_beta_follows_the_kept_pairs_alone(gaps):
    """The outlier of 50 left out, the kept lie at 1 and the mean at 3.45: 0.1 * (1 + 0.6 * (1 - 3.45)) < 0.001."""
    values = [*[1.0] * 19, 50.0]
    output = beta_dynamic(*gaps(*values), pair_seed=seeds(20), rho=0.05)
    assert output.metrics["kept"][-1].item() == 0
    assert output.metrics["beta"][0].item() == pytest.approx(0.001)
    gentle = beta_dynamic(*gaps(*values), pair_seed=seeds(20), rho=0.05, alpha=0.2)
    assert gentle.metrics["beta"][0].item() == pytest.approx(0.1 * (1 + 0.2 * (1 - 3.45)), rel=1e-12)


def test_equal_margins_leave_pairs_out_evenly(gaps):
    """At the start all D are 0, so every z-score is 0 and the seeds alone decide."""
    kept = torch.stack(
        [
            beta_dynamic(*gaps(0.0, 0.0), pair_seed=seeds(2) + 65_537 * trial, rho=0.5).metrics["kept"]
            for trial in range(200)
        ]
    )
    assert kept.sum(1).tolist() == [1] * 200
    assert 70 < kept[:, 0].sum() < 130  # 100 +- 4 standard deviations of 7


def test_beta_is_held_constant(gaps):
    """The slope is that of log(1 + e^(-b D)) in D alone: -b sigmoid(-b D)."""
    policy, reference = gaps(1.0, 3.0)
    policy.chosen.tokens.requires_grad_()
    output = beta_dynamic(policy, reference, pair_seed=seeds(2), rho=0.0)
    output.loss.sum().backward()
    wanted = [-0.1 / (1 + math.exp(0.1)), -0.1 / (1 + math.exp(0.3))]
    assert policy.chosen.tokens.grad.tolist() == pytest.approx(wanted, rel=1e-12)
