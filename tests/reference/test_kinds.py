"""Kinds of reference: each scores outside the graph and leaves the policy as it was; those that move say so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import toy
from peft import LoraConfig, get_peft_model

from prefopt.data.packs.pack import pack
from prefopt.errors import CorruptError, ModelError, RecipeError
from prefopt.optim import trainable
from prefopt.policy import Policy
from prefopt.reference import (
    AdapterOffReference,
    FrozenAdapterReference,
    FrozenReference,
    LiveReference,
    MovingReference,
    SelfReference,
    SeveralReferences,
)


def adapted() -> Policy:
    """The small Llama with two adapters of random factors; ``default`` is the trained one."""
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(1)
    model = get_peft_model(toy.llama(), config)
    model.add_adapter("reference", config)
    model.set_adapter("default")
    return Policy(model)


def moving(every: int = 1, mix: float = 1.0) -> MovingReference:
    return MovingReference(toy.policy(), every=every, mix=mix)


LIVE: dict[str, Callable[[], LiveReference]] = {
    "frozen": lambda: FrozenReference(toy.policy(), is_start=True),
    "moving": moving,
    "itself": lambda: SelfReference(toy.policy()),
    "adapter off": lambda: AdapterOffReference(adapted(), is_start=False),
    "frozen adapter": lambda: FrozenAdapterReference(adapted()),
}


def standing(policy: Policy) -> dict[str, object]:
    modes = {f"{name}.training": module.training for name, module in policy.model.named_modules()}
    flags = {name: p.requires_grad for name, p in policy.model.named_parameters()}
    active = getattr(policy.model, "active_adapter", None)
    return {"model": policy.model, "adapter": active, **modes, **flags}


@pytest.mark.parametrize("name", LIVE)
def test_scoring_leaves_everything_as_it_was_even_after_an_error(name: str) -> None:
    reference = LIVE[name]()
    if name not in ("frozen", "moving"):
        reference.policy.model.train()
    before = standing(reference.policy)
    batch = pack(toy.groups(3))
    found = reference(batch, stats=("entropy",))
    rows, _ = reference.with_rows(batch, stats=("entropy",))
    assert not found.tokens.requires_grad and torch.equal(found.tokens, rows.tokens)
    assert standing(reference.policy) == before
    with pytest.raises(RuntimeError, match="inside"), reference.scoring():
        raise RuntimeError("inside")
    assert standing(reference.policy) == before


def test_adapters_off_active_and_frozen_are_three_models() -> None:
    policy, batch = adapted(), pack(toy.groups(3))
    off, frozen = AdapterOffReference(policy, is_start=False), FrozenAdapterReference(policy)
    seen = [each(batch).tokens for each in (off, frozen, SelfReference(policy))]
    assert torch.equal(seen[0], toy.policy()(batch).tokens.detach())
    assert not any(torch.allclose(seen[a], seen[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("name", ["adapter off", "frozen adapter"])
def test_a_factor_that_is_kept_fixed_stays_so(name: str) -> None:
    """Switching adapters would have it trained again."""
    reference = LIVE[name]()
    factor = dict(reference.policy.model.named_parameters())[
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    ]
    factor.requires_grad_(False)
    reference(pack(toy.groups(3)))
    assert not factor.requires_grad


@pytest.mark.parametrize("make", [lambda p: AdapterOffReference(p, is_start=True), FrozenAdapterReference])
def test_weights_trained_beside_an_adapter_are_refused(make: Callable[[Policy], LiveReference]) -> None:
    """They are the reference's own, so that it would move with the policy."""
    policy = adapted()
    dict(policy.model.named_parameters())["base_model.model.model.norm.weight"].requires_grad_(True)
    with pytest.raises(
        ModelError, match=r"'base_model\.model\.model\.norm\.weight' is trained beside the adapter"
    ):
        make(policy)


def test_what_an_adapter_holds_besides_its_factors_is_its_own() -> None:
    """A whole copy of the head, and the lengths of DoRA."""
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], use_dora=True)
    AdapterOffReference(Policy(get_peft_model(toy.llama(), config)), is_start=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdapterOffReference(toy.policy(), is_start=True), "the model has no adapter that could be"),
        (lambda: FrozenAdapterReference(toy.policy()), "the model has no adapter 'reference'"),
        (lambda: FrozenAdapterReference(adapted(), trained="mine"), "the model has no adapter 'mine'"),
    ],
)
def test_a_missing_adapter_is_named(make: Callable[[], LiveReference], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        make()


@pytest.mark.parametrize("name", LIVE)
def test_a_reference_that_stays_has_no_state_and_does_not_follow(name: str) -> None:
    reference = LIVE[name]()
    if reference.moves:
        assert reference.state()
        return
    before = {n: p.clone() for n, p in reference.policy.model.named_parameters()}
    reference.follow({n: torch.nn.Parameter(p + 1) for n, p in before.items()}, done=1)
    assert all(torch.equal(p, before[n]) for n, p in reference.policy.model.named_parameters())
    assert reference.state() == {}


def test_several_follow_and_are_saved_one_by_one() -> None:
    """The first moves all the way after every step, the third a quarter of the way after every second one."""
    one, other = moving(), moving(every=2, mix=0.25)
    several = SeveralReferences([one, toy.reference(seed=1), other])
    policy = toy.policy(seed=2)
    trained = trainable(policy.model)
    assert several.moves and len(list(several.models())) == 3
    several.follow(trained, done=1)
    batch = pack(toy.groups(3))
    assert torch.equal(several(batch).tokens, policy(batch).tokens.detach())
    several.follow(trained, done=2)
    start = dict(toy.policy().model.named_parameters())
    state = several.state()
    assert len(state) == 2 * len(trained)
    for name, parameter in trained.items():
        assert torch.equal(state[f"0.{name}"], parameter)
        expected = 0.75 * start[name] + 0.25 * parameter
        torch.testing.assert_close(state[f"2.{name}"], expected, rtol=1e-12, atol=1e-12)  # float64
    again = SeveralReferences([moving(), toy.reference(seed=1), moving(every=2, mix=0.25)])
    again.load_state(state)
    assert torch.equal(again(batch).stats["reference_3"], several(batch).stats["reference_3"])


@pytest.mark.parametrize(("every", "mix"), [(0, 0.5), (1, 0.0), (1, 7.0)])
def test_a_reference_moves_towards_the_policy_and_no_further(every: int, mix: float) -> None:
    with pytest.raises(RecipeError, match=f"cannot move by {mix:g} every {every} steps"):
        moving(every=every, mix=mix)


def test_a_share_of_an_adapter_is_no_adapter() -> None:
    """Averages of factors are not factors of the average; a whole step is."""
    with pytest.raises(RecipeError, match=r"mix 0\.5 would average the factors of an adapter"):
        MovingReference(adapted(), every=1, mix=0.5)
    assert MovingReference(adapted(), every=1, mix=1.0).state()


def test_a_policy_that_trains_something_else_cannot_be_followed() -> None:
    policy = toy.policy()
    policy.model.get_input_embeddings().requires_grad_(False)  # type: ignore[operator]
    with pytest.raises(RecipeError, match=r"'model\.embed_tokens\.weight' is trained in the policy or moves"):
        moving().follow(trainable(policy.model), 1)


def test_a_reference_that_was_put_in_training_mode_scores_as_ever() -> None:
    reference, batch = FrozenReference(toy.policy(), is_start=True), pack(toy.groups(2))
    before = reference(batch).tokens
    reference.policy.model.train()
    assert torch.equal(reference(batch).tokens, before)


def test_the_state_of_another_model_is_refused() -> None:
    reference = moving()
    state = reference.state()
    name = next(iter(state))
    for wrong in ({}, state | {name: state[name][:1]}):
        with pytest.raises(CorruptError, match="does not have the weights of this model"):
            reference.load_state(wrong)
