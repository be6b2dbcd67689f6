"""The stat ``kl`` is the divergence of full softmax distributions, values and gradients, in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import toy
from torch import Tensor, nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

from prefopt.data.packs.pack import pack
from prefopt.errors import RecipeError
from prefopt.policy import Policy
from prefopt.reference import (
    AdapterOffReference,
    CachedReference,
    FrozenAdapterReference,
    FrozenReference,
    LiveReference,
    SelfReference,
    check_rows,
)
from prefopt.reference.cache import LogpCache

GROUPS = [*toy.groups(2, seed=1), *toy.groups(2, seed=2, answers=3)]


def gpt2() -> GPT2LMHeadModel:
    """Learned positions, a tied head, another width than the Llama's."""
    torch.manual_seed(5)
    config = GPT2Config(
        vocab_size=toy.VOCABULARY,
        n_embd=24,
        n_layer=2,
        n_head=2,
        n_positions=64,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return GPT2LMHeadModel(config).double()


def gemma() -> Gemma3ForCausalLM:
    """A head whose logits are capped."""
    torch.manual_seed(6)
    config = Gemma3TextConfig(
        vocab_size=toy.VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=1.5,
        initializer_range=0.4,
    )
    model = Gemma3ForCausalLM(config).double()
    for module in model.modules():
        if isinstance(module, Gemma3RMSNorm):
            module.forward = partial(_norm, module)
    return model


def _norm(module: Gemma3RMSNorm, x: Tensor) -> Tensor:
    """Normalise in the input's own dtype; transformers rounds to float32 in between, which hides 1e-10."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.eps) * (1.0 + module.weight)


def lora(**settings: Any) -> nn.Module:
    """Put an adapter that changes something on the small Llama."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(7)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4, **settings)
    model = peft.get_peft_model(toy.llama(), config).double()
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def log_probs(model: Any) -> Tensor:
    """Return the whole distribution at every scored token, each answer as one plain sequence, [M, V]."""
    rows = []
    for group in GROUPS:
        prompt = torch.from_numpy(group.prompts[0]).long()
        for answer in group.responses:
            ids = torch.cat([prompt, torch.from_numpy(answer).long()])[None]
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
            rows.append(logits[0, len(prompt) - 1 : -1].log_softmax(-1))
    return torch.cat(rows)


def divergence(policy: Any, reference: Tensor) -> Tensor:
    """Return the sum over the vocabulary of r (ln r - ln p), [M]."""
    return (reference.exp() * (reference - log_probs(policy))).sum(-1)


def gradients(model: nn.Module, kl: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    (kl * upstream).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def compare(policy: Policy, reference: LiveReference, expected: Tensor, wanted: dict[str, Tensor]) -> None:
    """Score packed, with shared prompts and without, and compare; the log-probs must not change either."""
    upstream = torch.linspace(-1, 1, len(expected), dtype=torch.float64)
    for share in (True, False):
        batch = pack(GROUPS, share_prompts=share)
        logps, rows = reference.with_rows(batch, stats=("entropy",))
        plain = reference(batch, stats=("entropy",))
        assert torch.equal(logps.tokens, plain.tokens)
        assert torch.equal(logps.stats["entropy"], plain.stats["entropy"])
        found = policy(batch, stats=("kl", "entropy"), against=rows)
        assert torch.equal(found.tokens, policy(batch, stats=("entropy",)).tokens)
        kl = found.stats["kl"]
        torch.testing.assert_close(kl, expected, rtol=1e-10, atol=1e-12)
        got = gradients(policy.model, kl, upstream)
        assert got.keys() == wanted.keys()
        for name, grad in wanted.items():
            # 1e-10 of the largest entry; a bias of keys has none but rounding
            atol = 1e-10 * float(grad.abs().max()) + 1e-14
            torch.testing.assert_close(got[name], grad, rtol=1e-10, atol=atol, msg=name)


MODELS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "llama-llama": (toy.llama, lambda: toy.llama(1)),
    "llama-gpt2": (toy.llama, gpt2),
    "llama-gemma": (toy.llama, gemma),
    "gpt2-llama": (gpt2, toy.llama),
    "gemma-gpt2": (gemma, gpt2),
}


@pytest.mark.parametrize(("build", "other"), MODELS.values(), ids=MODELS.keys())
def test_kl_equals_the_full_softmax(build: Callable[[], Any], other: Callable[[], Any]) -> None:
    """Tied and untied heads, capped logits, other widths: the reference's model need not be the policy's."""
    model, theirs = build(), other()
    expected = divergence(model, log_probs(theirs).detach())
    assert expected.min() > 0
    upstream = torch.linspace(-1, 1, len(expected), dtype=torch.float64)
    wanted = gradients(model, expected, upstream)
    compare(Policy(model), FrozenReference(Policy(theirs), is_start=False), expected.detach(), wanted)


ADAPTERS = {
    "trunk": {"target_modules": ["q_proj", "up_proj"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "whole head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("settings", ADAPTERS.values(), ids=ADAPTERS.keys())
def test_against_the_base_of_an_adapter(settings: dict[str, Any]) -> None:
    """The head is shared, or has a low-rank term or a copy that only the policy uses."""
    model = lora(**settings)
    with model.disable_adapter(), torch.no_grad():
        base = log_probs(model)
    expected = divergence(model, base)
    upstream = torch.linspace(-1, 1, len(expected), dtype=torch.float64)
    wanted = gradients(model, expected, upstream)
    policy = Policy(model)
    compare(policy, AdapterOffReference(policy, is_start=False), expected.detach(), wanted)


def test_against_a_second_adapter() -> None:
    """Both have a low-rank term on the head: the trained one's gradient stops at the frozen one's."""
    model: Any = lora(target_modules=["q_proj", "lm_head"])
    model.add_adapter("reference", model.peft_config["default"])
    model.double()
    for name, parameter in model.named_parameters():
        if "reference" in name:
            nn.init.normal_(parameter, std=0.2)
    model.set_adapter("reference")
    with torch.no_grad():
        base = log_probs(model)
    model.set_adapter("default")
    expected = divergence(model, base)
    upstream = torch.linspace(-1, 1, len(expected), dtype=torch.float64)
    wanted = gradients(model, expected, upstream)
    policy = Policy(model)
    compare(policy, FrozenAdapterReference(policy), expected.detach(), wanted)


def test_against_itself_it_is_zero() -> None:
    """A policy that has not moved diverges from its own start by nothing, to the last bit."""
    policy = toy.policy()
    batch = pack(GROUPS)
    for reference in (SelfReference(policy), toy.reference()):
        _, rows = reference.with_rows(batch)
        assert policy(batch, stats=("kl",), against=rows).stats["kl"].abs().max() == 0


def test_layers_are_read_where_the_targets_are_predicted() -> None:
    """Hidden states of every layer at the scored rows, as the plain model returns them; the last one unnormed."""
    reference = toy.reference(seed=1)
    _, rows = reference.with_rows(pack(GROUPS), layers=lambda hidden: hidden)
    plain: Any = toy.llama(1)
    wanted: list[list[Tensor]] = [[], []]
    for group in GROUPS:
        prompt = torch.from_numpy(group.prompts[0]).long()
        for answer in group.responses:
            ids = torch.cat([prompt, torch.from_numpy(answer).long()])[None]
            seen = plain.model(input_ids=ids, use_cache=False, output_hidden_states=True)
            wanted[0].append(seen.hidden_states[1][0, len(prompt) - 1 : -1])
            wanted[1].append(seen.last_hidden_state[0, len(prompt) - 1 : -1])
    assert len(rows.layers) == 2
    torch.testing.assert_close(rows.layers[0], torch.cat(wanted[0]), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(plain.model.norm(rows.layers[1]), torch.cat(wanted[1]), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(rows.hidden, torch.cat(wanted[1]), rtol=1e-10, atol=1e-12)


def test_a_cache_and_another_vocabulary_are_refused() -> None:
    """One line each, from ``check_rows``, before anything is scored."""
    policy = toy.policy()
    cached = CachedReference(LogpCache(), is_start=True)
    with pytest.raises(
        RecipeError, match="reads 'kl', which is made from the hidden states of one reference"
    ):
        check_rows("tdpo", ("kl",), policy, cached)
    config = LlamaConfig(
        vocab_size=70, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    other = FrozenReference(Policy(LlamaForCausalLM(config)), is_start=False)
    with pytest.raises(RecipeError, match="head has 70 tokens and the policy's 61"):
        check_rows("tdpo", ("kl",), policy, other)
    check_rows("tdpo", ("activation",), policy, other)
