"""The curves behind the plots of losses, against numbers worked by hand."""

from __future__ import annotations

import math

import pytest
from lanes import slow_but

from prefopt.losses import LOSSES, contract_of, dpo, ipo, sft
from prefopt.verbs.losses.curves import curves_of


def test_dpo_is_the_logistic_of_a_tenth_of_the_margin() -> None:
    """Beta 0.1: at margin 0 log 2 with slope -0.05; at 100 nats log(1 + e^-10)."""
    curves = curves_of(dpo)
    assert curves is not None
    (curve,) = curves.lines
    middle = curve.margin.index(0.0)
    assert curve.loss[middle] == pytest.approx(math.log(2))
    assert curve.slope[middle] == pytest.approx(-0.05)
    assert (curve.margin[-1], curve.loss[-1]) == (100.0, pytest.approx(math.log1p(math.exp(-10))))
    assert curves.axis == "chosen minus rejected log-ratio to the reference, nats"


def test_ipo_is_lowest_at_five_nats_per_token() -> None:
    """Beta 0.1 asks for 5 nats per token, 1000 nats over the 200 tokens of the drawn answers."""
    curves = curves_of(ipo)
    assert curves is not None
    (curve,) = curves.lines
    lowest = min(range(len(curve.loss)), key=lambda at: curve.loss[at])
    assert curve.margin[lowest] == pytest.approx(1000, abs=75)  # the points are 75 nats apart


def test_likelihood_has_no_margin() -> None:
    assert curves_of(sft) is None


RELATIVE = ("aot_unpaired", "bco_unpaired")


@pytest.mark.parametrize("name", RELATIVE)
def test_an_answer_that_is_compared_with_others_of_its_step_costs_the_same_alone(name: str) -> None:
    assert curves_of(LOSSES[name]) is None


MARGINAL = [n for n in LOSSES if contract_of(LOSSES[n]).structure != "responses" and n not in RELATIVE]


@pytest.mark.parametrize("name", slow_but(("dpo", "simpo", "kto", "plackett_luce", "tdpo", "aot"), MARGINAL))
def test_every_loss_has_finite_curves_that_move(name: str) -> None:
    curves = curves_of(LOSSES[name], num_points=9)
    assert curves is not None
    for curve in curves.lines:
        assert all(map(math.isfinite, (*curve.loss, *curve.slope)))
    assert any(len(set(curve.loss)) > 1 for curve in curves.lines)
