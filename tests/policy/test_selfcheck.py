"""The self-check: the model as it was loaded, on both sides of every boundary, in training mode, too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import causal_types
import pytest
import torch
import toy
from torch import Tensor, nn
from transformers import LlamaConfig, MistralConfig, MistralForCausalLM

from prefopt.errors import ModelError
from prefopt.kernels.prefix_attention.backends import BACKENDS
from prefopt.kernels.prefix_attention.spec import Rule
from prefopt.policy import Policy, dropout
from prefopt.policy.selfcheck import boundaries_of, describe_untried
from prefopt.types import Segments

ROPE = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}


def phimoe() -> Any:
    return causal_types.build(causal_types.config_of("phimoe, no window"))


def mistral(window: int, **changes: Any) -> MistralConfig:
    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192}
    return MistralConfig(**{**sizes, **heads, "sliding_window": window, **changes})


def test_what_a_policy_changes_is_held_against_the_model_as_it_was_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A number that means no dropout, put to zero: packed and separate rows agree, and both are wrong."""
    assert Policy(phimoe()).self_check() < 1e-5
    monkeypatch.setattr(dropout, "_ALWAYS_ON", {})
    policy = Policy(phimoe())
    with pytest.raises(ModelError, match="scores packed rows differently"):
        policy.self_check()


def test_thresholds_of_routers_are_left_alone_and_their_draws_switched_off() -> None:
    model = phimoe()
    thresholds = [layer.mlp.router.router_jitter_noise for layer in model.model.layers]
    policy = Policy(model.train())
    assert [layer.mlp.router.router_jitter_noise for layer in model.model.layers] == thresholds != [0, 0]
    assert model.config.router_jitter_noise > 0 == model.config.input_jitter_noise
    assert not policy.drops and model.training and not model.model.layers[0].mlp.router.training
    assert Policy(phimoe(), dropout=True).drops


def test_a_model_that_is_random_in_training_mode_is_refused() -> None:
    """By nothing that is known as dropout."""

    class Noisy(nn.Linear):
        def forward(self, hidden: Tensor) -> Tensor:
            out = super().forward(hidden)
            return out + torch.rand_like(out) if self.training else out

    model = toy.llama(dtype=torch.float32)
    model.model.layers[0].mlp.down_proj.__class__ = Noisy
    policy = Policy(model)
    with pytest.raises(ModelError, match=r"differently in training mode, by .* something in it is random"):
        policy.self_check()
    assert not any(module.training != model.training for module in model.modules())


@pytest.mark.parametrize(("window", "is_seen"), [(200, True), (1000, False)])
def test_a_window_that_is_ignored_is_seen_where_it_is_tried(
    window: int, is_seen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The short rows of the check end before 200 tokens; beyond 640 it says that it has not looked."""

    def endless(
        q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, segments: Segments, rule: Rule
    ) -> Tensor:
        return BACKENDS["dense"].run(q, k, v, sinks, segments, replace(rule, window=None))

    torch.manual_seed(0)
    policy = Policy(MistralForCausalLM(mistral(window, initializer_range=0.3)))
    assert policy.self_check() < 1e-4
    monkeypatch.setitem(BACKENDS, "segments", replace(BACKENDS["segments"], run=endless))
    if is_seen:
        with pytest.raises(ModelError, match="scores packed rows differently"):
            policy.self_check()
    else:
        policy.self_check()
    assert policy.describe().get("self-check") == (None if is_seen else "not beyond sliding_window 1000")


def test_boundaries_are_those_that_sequences_may_cross() -> None:
    """14 tokens beyond each: within 8192 positions, within 640 tokens, within the reach of RoPE."""
    trained = {"rope_parameters": {**ROPE, "original_max_position_embeddings": 100}}
    assert boundaries_of(mistral(30, **trained)).tried == {
        30: "sliding_window",
        100: "original_max_position_embeddings",
    }
    assert describe_untried(mistral(30, **trained)) is None
    assert boundaries_of(mistral(626)).tried and boundaries_of(mistral(627)).untried == {
        627: "sliding_window"
    }
    assert not any(boundaries_of(mistral(8180)))
    longest = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    assert not any(boundaries_of(mistral(30, rope_parameters=longest, max_position_embeddings=40)))
    assert not any(boundaries_of(LlamaConfig()))
