"""What is trained stays what the optimizer moves, and what a reference scores without."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import toy
from peft import LoraConfig, get_peft_model
from torch import nn

from prefopt.data.packs.steps import PlannedSteps
from prefopt.engine import Engine
from prefopt.errors import ModelError, RecipeError
from prefopt.losses import dpo
from prefopt.optim import OptimSettings
from prefopt.policy import Policy
from prefopt.reference import AdapterOffReference, Reference, SeveralReferences
from prefopt.reference.several import check_apart
from prefopt.trainer import Trainer

HEAD = "base_model.model.lm_head.weight"


def trainer_of(policy: Policy, reference: Reference | None = None) -> Trainer:
    data = toy.table(16)
    return Trainer(
        policy,
        dpo,
        PlannedSteps(toy.plan(data, per_step=4), data),
        num_steps=4,
        reference=reference or toy.reference(seed=0),
        optim=OptimSettings(lr=1e-2, warmup=0),
        engine=Engine(cpu=True),
    )


def adapted(**settings: Any) -> Any:
    torch.manual_seed(0)
    return get_peft_model(toy.llama(), LoraConfig(r=2, target_modules=["q_proj"], **settings)).double()


def unfreeze(model: Any) -> None:
    model.model.norm.weight.requires_grad_(True)


def assign(model: Any) -> None:
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)


def resize(model: Any) -> None:
    model.resize_token_embeddings(80)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", [unfreeze, assign, resize])
def test_what_the_optimizer_would_not_move_is_refused(change: Callable[[Any], None]) -> None:
    """A larger tensor in the place of a smaller one even had AdamW write beyond its averages."""
    policy = toy.policy()
    policy.model.model.norm.weight.requires_grad_(False)  # type: ignore[union-attr]
    trainer = trainer_of(policy)
    list(trainer.run(1))
    change(policy.model)
    with pytest.raises(
        RecipeError, match=r"'model\.\S+' is trained by now, but this trainer's optimizer was built"
    ):
        next(trainer.run(1))


def test_weights_may_be_loaded_in_place_and_frozen_between_steps() -> None:
    policy = toy.policy()
    trainer = trainer_of(policy)
    list(trainer.run(1))
    policy.model.load_state_dict(toy.llama(seed=3).state_dict())
    embedding: nn.Module = policy.model.get_input_embeddings()  # type: ignore[operator]
    embedding.requires_grad_(False)
    before = [p.detach().clone() for p in policy.model.parameters()]
    list(trainer.run(1))
    moved = {
        name
        for (name, p), old in zip(policy.model.named_parameters(), before, strict=True)
        if (p != old).any()
    }
    assert moved == trainer.parameters.keys() - {"model.embed_tokens.weight"}


@pytest.mark.parametrize("several", [False, True])
def test_what_is_unfrozen_behind_an_adapter_off_reference_is_seen(several: bool) -> None:
    """The reference would have moved with the head."""
    policy = Policy(adapted())
    reference: Reference = AdapterOffReference(policy, is_start=True)
    if several:
        reference = SeveralReferences([toy.reference(seed=1), reference])
    check_apart(policy, reference)
    dict(policy.model.named_parameters())[HEAD].requires_grad_(True)
    with pytest.raises(ModelError, match=rf"'{HEAD}' is trained beside the adapter"):
        check_apart(policy, reference)


def reentrant(model: Any) -> None:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.disable_input_require_grads()


def merge(model: Any) -> None:
    model.merge_adapter()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cut", [reentrant, merge])
def test_layers_that_no_gradient_reaches_are_refused(cut: Callable[[Any], None]) -> None:
    """The head would be trained and the adapter of the layers never."""
    model = adapted(modules_to_save=["lm_head"])
    cut(model)
    trainer = trainer_of(Policy(model))
    before = {name: p.detach().clone() for name, p in trainer.parameters.items()}
    with pytest.raises(
        ModelError, match=r"no gradient reaches its layers, so '\S+lora_A\S+' would never move \(4 of 5"
    ):
        next(iter(trainer))
    assert all(torch.equal(p, before[name]) for name, p in trainer.parameters.items())


def test_a_trained_tensor_that_nothing_reads_is_named(caplog: pytest.LogCaptureFixture) -> None:
    policy = toy.policy()
    policy.model.spare = nn.Parameter(torch.zeros(2))
    with caplog.at_level(logging.WARNING):
        list(trainer_of(policy).run(2))
    said = [record.message for record in caplog.records if "no gradient" in record.message]
    assert len(said) == 1 and "'spare' for one" in said[0]


def test_float16_is_not_trained() -> None:
    """Nothing scales the loss, and the square of a gradient of 1e-4 is zero."""
    with pytest.raises(RecipeError, match="is to be trained in float16"):
        trainer_of(Policy(toy.llama(dtype=torch.float32).half()))
    with pytest.raises(RecipeError, match="float16 needs loss scaling"):
        Engine(cpu=True, autocast=torch.float16)
