"""Preferences over two prompts: the loss of DPO, and a contract that lets such rows in."""

import pytest

from prefopt.losses import LOSSES, bound, contract_of, joint_prompt, mixed, with_nll
from prefopt.losses.dpo import dpo


def test_margin_of_answers_after_their_own_prompts(pairs):
    """-1 - -2 = 1 against -3 - -2 = -1: 0.1 * 2 = 0.2; log(1 + e^-0.2) = 0.598139."""
    output = joint_prompt(pairs([[-1.0]], [[-3.0]]), pairs([[-2.0]], [[-2.0]]))
    assert output.loss.tolist() == pytest.approx([0.598139], abs=1e-6)  # six digits are written above


def test_it_alone_takes_two_prompts_and_keeps_them_when_composed():
    takers = {name for name in LOSSES if "two" in contract_of(LOSSES[name]).prompts}
    assert takers == {"joint_prompt"}
    assert contract_of(with_nll(joint_prompt)).prompts == ("two",)
    closed = bound(joint_prompt, beta=0.1, label_smoothing=0.0)
    assert contract_of(mixed([closed, with_nll(closed)], [1.0, 1.0])).prompts == ("two",)
    assert contract_of(dpo).prompts == ()
