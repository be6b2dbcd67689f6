"""One answer to two prompts: the loss of DPO, and a contract that asks for such rows."""

import pytest

from prefopt.losses import contract_of, prompt_contrast


def test_gap_of_one_answers_rewards_after_both_prompts(pairs):
    """Ratio 3 after the first prompt, 1 after the other: 0.1 * 2 = 0.2; log(1 + e^-0.2) = 0.598139."""
    output = prompt_contrast(pairs([[-1.0, -1.0]], [[-2.0, -2.0]]), pairs([[-3.0, -2.0]], [[-2.0, -3.0]]))
    assert output.loss.tolist() == pytest.approx([0.598139], abs=1e-6)  # six digits are written above
    assert output.chosen_reward.tolist() == pytest.approx([0.3], rel=1e-15)


def test_it_asks_for_one_answer_to_two_prompts():
    assert contract_of(prompt_contrast).prompts == ("contrast",)
