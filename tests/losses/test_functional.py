"""The plain-tensor door gives what the losses give, and says where it cannot."""

import inspect

import pytest
import torch

from prefopt.errors import RecipeError
from prefopt.losses import LOSSES, contract_of, functional, ipo, simpo
from prefopt.types import INPUTS, SeqLogps

LOGPS = functional.SUMS
ON_SUMS = [
    name for name in LOSSES if name not in ("ipo", "simpo") and f"{name}_loss" not in functional._INSTEAD
]


@pytest.fixture
def policy(pairs):
    return pairs([[-1.0, -2.0], [-0.5]], [[-5.0], [-1.0, -3.0, -2.0]])


@pytest.fixture
def reference(pairs):
    return pairs([[-2.0, -2.5], [-1.5]], [[-4.0], [-1.0, -2.0, -2.0]])


@pytest.fixture
def sums(policy, reference):
    sides = (policy.chosen, policy.rejected, reference.chosen, reference.rejected)
    return dict(zip(LOGPS, (side.total for side in sides), strict=True))


@pytest.fixture
def lengths(policy):
    return {"chosen_lengths": policy.chosen.length, "rejected_lengths": policy.rejected.length}


def same(one, other):
    torch.testing.assert_close(one, other, rtol=1e-15, atol=0.0)  # one order of division apart


@pytest.mark.parametrize("name", ON_SUMS)
def test_a_loss_on_sums_is_the_loss_itself(name, policy, reference, sums):
    """At its defaults and once more at beta 0.3."""
    scores = {"chosen_score": torch.tensor([0.9, 0.4]), "rejected_score": torch.tensor([0.2, 0.5])}
    inputs = {key: scores[key].double() for key in contract_of(LOSSES[name]).inputs}
    for settings in ({}, {"beta": 0.3}):
        got = getattr(functional, f"{name}_loss")(**sums, **inputs, **settings)
        same(got, LOSSES[name](policy, reference, **inputs, **settings).loss)


def test_ipo_in_both_norms(policy, reference, sums, lengths):
    torch.testing.assert_close(  # sums divided before, not after, the difference of the models
        functional.ipo_loss(**sums, **lengths, beta=0.3),
        ipo(policy, reference, beta=0.3).loss,
        rtol=1e-14,
        atol=0.0,
    )
    same(functional.ipo_loss(**sums, norm="sum"), ipo(policy, reference, norm="sum").loss)


def test_simpo(policy, sums, lengths):
    got = functional.simpo_loss(*list(sums.values())[:2], **lengths, beta=2.5, gamma=0.5)
    same(got, simpo(policy, beta=2.5, gamma=0.5).loss)


def test_doors_take_settings_of_every_kind(policy, reference, sums):
    for name, settings in {
        "dpo": {"beta": 0.3, "label_smoothing": 0.2},
        "focal": {"gamma": 0.4, "detach_weight": True},
        "convex": {"link": "savage"},
        "exo_pref": {"label_smoothing": 0.1},
    }.items():
        got = getattr(functional, f"{name}_loss")(**sums, **settings)
        same(got, LOSSES[name](policy, reference, **settings).loss)


def test_a_door_says_what_it_takes():
    door = functional.exo_rw_loss
    keywords = ("chosen_score", "rejected_score", "beta", "beta_r")
    assert tuple(inspect.signature(door).parameters) == (*functional.SUMS, *keywords)
    assert door.__name__ == "exo_rw_loss"
    assert "prefopt.losses.exo_rw" in door.__doc__
    assert ", ".join(keywords) in door.__doc__


def test_the_result_is_differentiable_and_per_pair(sums):
    sums["policy_chosen_logps"].requires_grad_()
    loss = functional.dpo_loss(**sums)
    assert loss.shape == (2,)
    loss.sum().backward()
    assert (sums["policy_chosen_logps"].grad < 0).all()


def test_integer_lengths_do(sums, lengths):
    whole = {name: value.long() for name, value in lengths.items()}
    same(functional.ipo_loss(**sums, **whole), functional.ipo_loss(**sums, **lengths))


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_here_with_its_defaults_or_says_what_to_build(name):
    if f"{name}_loss" in functional._INSTEAD:
        with pytest.raises(AttributeError, match=rf"no {name}_loss. .*Logps.from_.*prefopt.losses.{name}\("):
            getattr(functional, f"{name}_loss")
        return
    keyword = inspect.signature(getattr(functional, f"{name}_loss")).parameters.values()
    given = {
        p.name: p.default
        for p in keyword
        if p.kind is p.KEYWORD_ONLY and not p.name.endswith("_lengths") and p.name not in INPUTS
    }
    assert given == {key: setting.default for key, setting in contract_of(LOSSES[name]).settings.items()}


def test_other_names_are_ordinary_attribute_errors():
    with pytest.raises(AttributeError, match="label_smoothing above 0"):
        _ = functional.cdpo_loss
    with pytest.raises(AttributeError, match="has no attribute 'orpo_los'"):
        _ = functional.orpo_los


def test_bad_values_are_refused_at_the_door(sums, lengths):
    with pytest.raises(RecipeError, match=r"dpo_loss.beta: 0 is out of range. Give a number > 0."):
        functional.dpo_loss(**sums, beta=0)
    with pytest.raises(ValueError, match="norm='mean' needs chosen_lengths and rejected_lengths"):
        functional.ipo_loss(**sums)
    with pytest.raises(ValueError, match="norm='sum' does not use lengths"):
        functional.ipo_loss(**sums, **lengths, norm="sum")
    with pytest.raises(RecipeError, match=r"ipo_loss.norm: 'avg' is no choice"):
        functional.ipo_loss(**sums, norm="avg")
    sums["ref_chosen_logps"] = sums["ref_chosen_logps"][:1]
    with pytest.raises(
        ValueError, match=r"dpo_loss: the tensors have shapes .*\[1\].*Give one value per pair"
    ):
        functional.dpo_loss(**sums)
    with pytest.raises(TypeError, match=r"sppo_loss: missing .*'chosen_score'\. It takes"):
        functional.sppo_loss(*[torch.zeros(2)] * 4, rejected_score=torch.zeros(2))
    with pytest.raises(ValueError, match=r"sppo_loss: the tensors have shapes .*\[3\]"):
        functional.sppo_loss(
            *[torch.zeros(2)] * 4, chosen_score=torch.zeros(2), rejected_score=torch.zeros(3)
        )
    with pytest.raises(TypeError, match=r"hinge_loss: got an unexpected .*'betta'\. It takes .*beta"):
        functional.hinge_loss(*[torch.zeros(2)] * 4, betta=1.0)
    with pytest.raises(ValueError, match=r"simpo_loss: the tensors have shapes \[\[2, 1\]"):
        functional.simpo_loss(*[torch.zeros(2, 1)] * 4)


def test_one_token_stands_for_an_answer(sums):
    """What the door relies on: a single token's total and mean are its value."""
    value = sums["policy_chosen_logps"]
    stand_in = SeqLogps(tokens=value, lengths=(1, 1))
    assert torch.equal(stand_in.total, value)
    assert torch.equal(stand_in.mean, value)
