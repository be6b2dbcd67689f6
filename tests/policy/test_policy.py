"""The policy: statistics, adapters on the head, wrappers, dropout, guards and the self-check."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import toy
import transformers
from torch import Tensor, nn

from prefopt.data.packs.pack import group_of, pack
from prefopt.errors import ModelError, RecipeError
from prefopt.kernels import token_logps
from prefopt.policy import Policy, check_supported, disable_dropout
from prefopt.policy.attention import PACKED_ATTENTION, describe_back_ends
from prefopt.types import STATS, PackedBatch, Preference, TokenizedGroup

peft = pytest.importorskip("peft")


def batch(count: int = 3, seed: int = 0) -> PackedBatch:
    """Pack a few random groups."""
    return pack(toy.groups(count, seed))


def plain_scores(model: nn.Module, packed: PackedBatch) -> Tensor:
    """Return the ordinary log-softmax [M, V] of every scored token, sequence by sequence."""
    found = []
    at = 0
    segments = packed.segments
    answers = [k for k in range(len(segments)) if segments.parents[k] >= 0]
    for k, length in zip(answers, packed.lengths, strict=True):
        runs = [(segments.starts[n], segments.lengths[n]) for n in (segments.parents[k], k)]
        ids = torch.cat([packed.input_ids[low : low + n] for low, n in runs])[None]
        found.append(model(input_ids=ids, use_cache=False).logits[0, -length - 1 : -1].log_softmax(-1))
        at += length
    assert at == packed.target_ids.numel()
    return torch.cat(found)


def test_every_statistic_is_that_of_the_ordinary_logits() -> None:
    """Columns come back under their own names, whatever order they were asked in."""
    model, packed = toy.llama(), batch()
    log_p = plain_scores(model, packed)
    result = Policy(model)(packed, stats=STATS[::-1])
    picked = log_p.gather(-1, packed.target_ids[:, None]).squeeze(-1)
    torch.testing.assert_close(result.tokens, picked, rtol=1e-10, atol=1e-12)
    assert set(result.stats) == set(STATS)
    close = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(result.stats["entropy"], -(log_p.exp() * log_p).sum(-1), **close)
    torch.testing.assert_close(result.stats["log_sum_p2"], (2 * log_p).logsumexp(-1), **close)
    torch.testing.assert_close(result.stats["is_top1"], (picked == log_p.amax(-1)).double(), **close)
    # the mean of log p is the mean logit less the log-sum-exp
    offset = result.stats["mean_logit"] - result.stats["logsumexp"]
    torch.testing.assert_close(offset, log_p.mean(-1), **close)
    assert result.lengths == packed.lengths and result.total.shape == (6,)


def test_only_the_wanted_statistics_are_returned() -> None:
    """Without stats there is one column and no entropy pass."""
    result = Policy(toy.llama())(batch())
    assert result.stats == {}


def test_values_are_float32_for_half_precision_weights() -> None:
    """bfloat16 weights give float32 log-probs near those of float32 weights."""
    packed = batch()
    exact = Policy(toy.llama(dtype=torch.float32))(packed).tokens
    half = Policy(toy.llama(dtype=torch.float32).bfloat16())(packed).tokens
    assert half.dtype == exact.dtype == torch.float32
    # 8 bits through two layers, on log-probs of about -5
    torch.testing.assert_close(half, exact, rtol=0, atol=0.3)


def test_autocast_scores_near_full_precision_and_trains() -> None:
    """Under autocast layers run in bfloat16, the head in float32, and every weight gets a gradient."""
    model, packed = toy.llama(dtype=torch.float32), batch()
    policy = Policy(model)
    exact = policy(packed).tokens
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logps = policy(packed).tokens
    assert logps.dtype == torch.float32 and not torch.equal(logps, exact)
    torch.testing.assert_close(logps, exact, rtol=0, atol=0.3)
    logps.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def lora(model: nn.Module, **kwargs: Any) -> Any:
    """Add adapters whose effect is not zero."""
    settings = {
        "r": 3,
        "lora_alpha": 6,
        "target_modules": ["q_proj", "v_proj"],
        "lora_dropout": 0.0,
        **kwargs,
    }
    wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings)).double()
    torch.manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
        if "modules_to_save" in name and parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return wrapped


def gradients(model: nn.Module, total: Tensor) -> dict[str, Tensor]:
    """Return the gradient of every trained parameter."""
    model.zero_grad(set_to_none=True)
    total.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


ADAPTERS = {
    "trunk": {},
    "trunk_and_head": {"target_modules": ["q_proj", "lm_head"]},
    "head_alone": {"target_modules": ["lm_head"], "use_rslora": True},
    "saved_head": {"modules_to_save": ["lm_head"]},
}


@pytest.mark.filterwarnings("ignore")  # peft warns about adapters on heads, which is what is tested
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_are_exact_and_trained(name: str) -> None:
    """Values and gradients of every adapter weight equal those of ordinary logits; adapters off = base."""
    base, packed = toy.llama(), batch()
    start = Policy(copy.deepcopy(base))(packed).tokens
    model = lora(base, **ADAPTERS[name])
    log_p = plain_scores(model, packed).gather(-1, packed.target_ids[:, None]).squeeze(-1)
    upstream = torch.randn_like(log_p)
    wanted = gradients(model, (log_p * upstream).sum())
    policy = Policy(model)
    found = policy(packed).tokens
    torch.testing.assert_close(found, log_p, rtol=1e-10, atol=1e-12)
    assert (found - start).abs().max() > 1e-3
    grads = gradients(model, (found * upstream).sum())
    assert grads.keys() == wanted.keys() and len(grads) >= 2
    for key, grad in grads.items():
        torch.testing.assert_close(grad, wanted[key], rtol=1e-9, atol=1e-11, msg=key)
    with model.disable_adapter(), torch.no_grad():
        torch.testing.assert_close(policy(packed).tokens, start, rtol=1e-12, atol=1e-13)
    assert torch.equal(policy(packed).tokens, found)


@pytest.mark.filterwarnings("ignore")
def test_two_adapters_on_the_head_add_up() -> None:
    """Both active adapters reach the logits."""
    model, packed = lora(toy.llama(), target_modules=["lm_head"]), batch()
    model.add_adapter("second", peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["lm_head"]))
    model.double()
    nn.init.normal_(model.base_model.model.lm_head.lora_B["second"].weight, std=0.3)
    model.base_model.set_adapter(["default", "second"])
    log_p = plain_scores(model, packed).gather(-1, packed.target_ids[:, None]).squeeze(-1)
    torch.testing.assert_close(Policy(model)(packed).tokens, log_p, rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "settings",
    [{"use_dora": True}, {"lora_bias": True}],
    ids=["dora", "bias"],
)
def test_variants_of_lora_on_the_head_are_refused(settings: dict[str, Any]) -> None:
    """They change the logits in ways the op does not know."""
    model = lora(toy.llama(), target_modules=["lm_head"], **settings)
    with pytest.raises(ModelError, match="its head is a peft"):
        Policy(model)


def test_prompt_learning_is_refused() -> None:
    """Virtual tokens in front of a packed row would reach the first group only."""
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ModelError, match="virtual prompt tokens"):
        Policy(peft.get_peft_model(toy.llama(), config))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("config", "how"),
    [
        (lambda **own: peft.LoraConfig(alora_invocation_tokens=[3, 4], **own), "tokens of its own"),
        (peft.LilyConfig, "averages its experts"),
    ],
    ids=["alora", "lily"],
)
def test_adapters_that_look_at_the_whole_row_are_refused(config: Callable[..., Any], how: str) -> None:
    """The random tokens of the self-check never switch aLoRA on, so it saw nothing."""
    settings = config(target_modules=["q_proj"], task_type="CAUSAL_LM")
    with pytest.raises(ModelError, match=f"adapter 'default' .* {how}.* what shares it"):
        Policy(peft.get_peft_model(toy.llama(), settings))


def test_a_model_that_sees_later_tokens_is_refused() -> None:
    """Gemma 3 as an encoder: packed attention would have scored it as if it were causal."""
    config = transformers.Gemma3TextConfig(
        vocab_size=61, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, use_bidirectional_attention=True,
    )  # fmt: skip
    with pytest.raises(ModelError, match="Gemma3Attention attends to later tokens"):
        Policy(transformers.AutoModelForCausalLM.from_config(config))(batch())


def test_a_scale_that_was_changed_in_the_configuration_alone_is_refused() -> None:
    """Cohere multiplies its logits by the number that it was built with."""
    config = transformers.CohereConfig(
        vocab_size=61, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        logit_scale=0.5,
    )  # fmt: skip
    policy = Policy(transformers.CohereForCausalLM(config))
    assert policy(batch()).tokens.isfinite().all()
    config.logit_scale = 2.0
    with pytest.raises(ModelError, match=r"logit_scale is 2\.0 in the configuration .* was built with 0\.5"):
        policy(batch())


def test_logits_of_fewer_tokens_than_the_head_has_are_refused() -> None:
    """Models of one's own cut off rows that only fill a table up; the head's sum over all would be another."""

    class Cut(transformers.LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            outputs = super().forward(*args, **kwargs)
            outputs.logits = outputs.logits[..., :60]
            return outputs

    model = Cut(toy.llama().config).double()
    with pytest.raises(ModelError, match=r"Cut returns 60 logits a token, but its head makes 61"):
        Policy(model).self_check()


@pytest.mark.parametrize("token", [61, -1])
def test_token_ids_that_no_row_is_for_are_refused_in_a_batch(token: int) -> None:
    """However the batch was made; ``group_of`` takes no negative one."""
    batch = pack([group_of([1, 2], [[5, 2], [3]])])
    batch = replace(batch, input_ids=torch.where(batch.input_ids == 5, token, batch.input_ids))
    with pytest.raises(ModelError, match=rf"knows the token ids 0 to 60, but a batch holds {token}\."):
        Policy(toy.llama())(batch)


def test_a_head_that_is_not_plain_is_refused() -> None:
    """Quantised heads subclass Linear and bring their own forward."""

    class Quantised(nn.Linear):
        def forward(self, hidden: Tensor) -> Tensor:
            return super().forward(hidden.round())

    model = toy.llama()
    model.lm_head = Quantised(16, toy.VOCABULARY, bias=False).double()
    with pytest.raises(ModelError, match="Quantised"):
        Policy(model)


def test_the_head_and_its_config_are_restored_even_after_an_error() -> None:
    """Outside a call the model is as it was: same forward, same softcap."""
    model = transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(
            vocab_size=61, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, final_logit_softcapping=3.0,
        )
    )  # fmt: skip
    policy = Policy(model)
    policy(batch())
    hook = model.model.layers[0].register_forward_pre_hook(lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        policy(batch())
    hook.remove()
    assert "forward" not in vars(model.lm_head)
    assert model.config.final_logit_softcapping == 3.0


def test_wrappers_are_seen_through() -> None:
    """A data-parallel wrapper is called as a whole; the head inside is still ours."""
    model, packed = toy.llama(), batch()
    policy = Policy(model)
    expected = policy(packed).tokens

    class Engine(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module, self.calls = module, 0

        def forward(self, **kwargs: Any) -> Any:
            self.calls += 1
            return self.module(**kwargs)

    engine = Engine(model)
    policy.wrap(SimpleNamespace(prepare=lambda _: engine))  # type: ignore[arg-type]
    assert torch.equal(policy(packed).tokens, expected)
    policy.self_check()
    assert engine.calls == 1 and policy.model is engine
    engine.train()
    model.model.layers[0].eval()
    with policy.bare() as bare:
        assert bare is policy.model is model
        assert not any(module.training for module in model.modules())
    assert policy.model is engine and engine.training and model.training
    assert not model.model.layers[0].training


def test_only_the_policy_changes_which_model_it_has() -> None:
    """Elsewhere the model is read: a line outside cannot leave a wrapped or a bare one behind."""
    policy = Policy(toy.llama())
    with pytest.raises(AttributeError):
        policy.model = toy.llama()  # type: ignore[misc]


def test_plain_attention_gives_generation_back() -> None:
    """Inside the block the model generates as before; outside, ordinary use says what to do."""
    model = toy.llama().eval()
    ids = torch.tensor([[5, 9, 11]])
    before = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, pad_token_id=0
    )
    policy = Policy(model)
    with pytest.raises(ModelError, match=r"plain_attention"):
        model(input_ids=ids)
    with policy.plain_attention() as plain:
        after = plain.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, pad_token_id=0
        )
    assert torch.equal(before, after)
    assert model.config._attn_implementation == PACKED_ATTENTION
    policy(batch())


def test_two_policies_on_one_model_remember_its_own_attention() -> None:
    """The second policy must not take the first one's attention for the model's."""
    model = toy.llama()
    before = model.config._attn_implementation
    Policy(model)
    with Policy(model).plain_attention():
        assert model.config._attn_implementation == before


def test_saved_config_does_not_name_our_attention(tmp_path: Any) -> None:
    """A checkpoint loads without prefopt."""
    model = toy.llama(dtype=torch.float32)
    Policy(model)
    model.save_pretrained(tmp_path)
    assert PACKED_ATTENTION not in (tmp_path / "config.json").read_text()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config._attn_implementation != PACKED_ATTENTION


def noisy() -> nn.Module:
    """A GPT-2 with all its dropouts on."""
    config = transformers.GPT2Config(
        vocab_size=61, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def test_dropout_is_off_by_default_even_the_functional_one() -> None:
    """Two scorings in training mode are bit-equal, for modules and for attention_dropout in a config."""
    model = toy.llama(dtype=torch.float32)
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    model.config.attention_dropout = 0.5
    for noise in (model, noisy()):
        policy = Policy(noise)
        noise.train()
        assert torch.equal(policy(batch()).tokens, policy(batch()).tokens)
        with policy.plain_attention("eager"):
            ids = torch.arange(9)[None]
            assert torch.equal(noise(input_ids=ids).logits, noise(input_ids=ids).logits)


@pytest.mark.parametrize("kind", ["module", "number", "configuration"])
def test_attention_dropout_that_was_kept_is_refused_at_once(kind: str) -> None:
    """Packed attention cannot apply it. GPT-2 keeps it in modules, Llama in numbers; a config alone will do."""
    model: Any = noisy() if kind == "module" else toy.llama()
    if kind == "number":
        model.model.layers[1].self_attn.attention_dropout = 0.3
    if kind == "configuration":
        model.config.attention_dropout = 0.3
    with pytest.raises(
        RecipeError, match=r"model\.dropout: att\w+ of \w+ is 0\.3.* Set model.dropout: false"
    ):
        Policy(model, dropout=True)
    Policy(model)


def noisy_elsewhere() -> Any:
    """A GPT-2 whose dropout is all outside attention."""
    model = noisy()
    model.config.attn_pdrop = 0.0
    for layer in model.transformer.h:
        layer.attn.attn_dropout.p = 0.0
    return model


def draws(policy: Policy) -> list[Tensor]:
    """Score in training mode with seeds 1, 1 and 2."""
    policy.model.train()
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(policy(batch()).tokens)
    return found


def test_dropout_that_was_asked_for_is_drawn_from_the_seed() -> None:
    """Equal seeds give equal scores, others give others; in evaluation nothing is dropped."""
    policy = Policy(noisy_elsewhere(), dropout=True)
    assert policy.drops
    first, again, other = draws(policy)
    assert torch.equal(first, again) and (first - other).abs().max() > 1e-3
    with policy.evaluating():
        assert torch.equal(policy(batch()).tokens, policy(batch()).tokens)
    assert policy.model.training


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("where", ["q_proj", "lm_head"])
def test_adapters_may_drop_while_the_model_does_not(where: str) -> None:
    """A model full of dropout under LoRA: without the adapter scores are steady, with it they follow the seed."""
    base = toy.llama()
    base.config.attention_dropout = 0.5
    for layer in base.model.layers:
        layer.self_attn.attention_dropout = 0.5
    policy = Policy(lora(base, target_modules=[where], lora_dropout=0.5), adapter_dropout=True)
    assert policy.drops
    first, again, other = draws(policy)
    assert torch.equal(first, again) and (first - other).abs().max() > 1e-3
    with policy.model.disable_adapter():  # type: ignore[operator]
        first, again, other = draws(policy)
    assert torch.equal(first, other)
    assert not Policy(policy.model).drops


@pytest.mark.filterwarnings("ignore")
def test_adapter_dropout_is_off_too() -> None:
    """LoRA's dropout would make the policy differ from itself between two scorings."""
    model = lora(toy.llama(), target_modules=["q_proj", "lm_head"], lora_dropout=0.5)
    model.train()
    noisy_ids = torch.arange(9)[None]
    assert not torch.equal(model(input_ids=noisy_ids).logits, model(input_ids=noisy_ids).logits)
    disable_dropout(model)
    assert torch.equal(model(input_ids=noisy_ids).logits, model(input_ids=noisy_ids).logits)


def test_self_check_finds_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention that lets an answer see everything before it in the row is caught, in half precision too."""
    from prefopt.kernels.prefix_attention.backends import BACKENDS
    from prefopt.kernels.prefix_attention.spec import Rule
    from prefopt.types import Segments

    def leaky(
        query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, segments: Segments, rule: Rule
    ) -> Tensor:
        whole = Segments((0,), (sum(segments.lengths),), (-1,))
        return BACKENDS["dense"].run(query, key, value, sinks, whole, rule)

    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        model = toy.llama(dtype=torch.float32).to(dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2)
        policy = Policy(model)
        assert policy.self_check() < 0.5
        monkeypatch.setitem(BACKENDS, "segments", replace(BACKENDS["segments"], run=leaky))
        with pytest.raises(ModelError, match="differently"):
            policy.self_check()
        monkeypatch.undo()


def test_self_check_leaves_modes_and_gradients_alone() -> None:
    """Frozen parts stay in eval mode and nothing is added to a graph."""
    model = toy.llama()
    model.train()
    model.model.layers[0].eval()
    Policy(model).self_check()
    assert model.training and not model.model.layers[0].training and model.model.layers[1].training
    assert all(p.grad is None for p in model.parameters())


def test_self_check_fits_models_with_few_positions() -> None:
    """Ten learned positions: a prompt of six and answers of four."""
    config = transformers.GPT2Config(
        vocab_size=61, n_embd=16, n_layer=1, n_head=2, n_positions=10, bos_token_id=0, eos_token_id=0
    )
    assert Policy(transformers.GPT2LMHeadModel(config)).self_check() < 1e-4


def test_a_model_that_changes_logits_behind_the_head_is_refused() -> None:
    """A factor the configuration does not show would make every log-prob wrong."""

    class Hidden(transformers.LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            outputs = super().forward(*args, **kwargs)
            outputs.logits = outputs.logits * 0.5
            return outputs

    model = Hidden(toy.llama().config)
    # set by transformers from the source of the class, which here holds no attention at all
    with pytest.raises(ModelError, match="changes its logits"):
        Policy(model)(batch())


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (transformers.T5Config(), "encoder-decoder"),
        (transformers.Gemma3Config(), "vision tower"),
        (
            transformers.LlamaConfig(architectures=["LlamaForSequenceClassification"]),
            "no language model head",
        ),
        (transformers.LlamaConfig(architectures=["LlamaForTokenClassification"]), "no language model head"),
        (transformers.LlamaConfig(attention_chunk_size=64), "chunked attention"),
    ],
    ids=["t5", "gemma3", "classifier", "tagger", "chunked"],
)
def test_other_kinds_of_checkpoints_are_refused(config: Any, reason: str) -> None:
    """One line from the configuration alone."""
    with pytest.raises(ModelError, match=reason) as caught:
        check_supported(config)
    assert "\n" not in str(caught.value)


def test_unknown_attention_and_foreign_modules_are_refused() -> None:
    """A wrong name lists the right ones; a torch module is no causal model."""
    with pytest.raises(RecipeError, match=r"model\.attention: there is no 'flash'.*segments, dense"):
        Policy(toy.llama(), attention="flash")
    with pytest.raises(ModelError, match="Linear is no transformers model"):
        Policy(nn.Linear(2, 2))


def test_token_ids_beyond_the_embedding_are_refused() -> None:
    """61 rows hold ids 0 to 60; a head with fewer rows cannot score what the embedding reads."""
    policy = Policy(toy.llama())
    policy.check_fits(60, 10_000)  # rotary positions have no table to run out of
    with pytest.raises(ModelError, match=r"token ids 0 to 60, but the tokenizer gives the data 61"):
        policy.check_fits(61, 10)
    model = toy.llama()
    model.lm_head = nn.Linear(16, 50, bias=False).double()
    with pytest.raises(ModelError, match="token ids 0 to 49"):
        Policy(model).check_fits(55, 10)
    with pytest.raises(ModelError, match="token ids 0 to 60"):
        Policy(lora(toy.llama(), target_modules=["q_proj", "embed_tokens"])).check_fits(61, 10)


TABLES = {
    "gpt2": noisy,
    "opt": lambda: transformers.OPTForCausalLM(
        transformers.OPTConfig(
            vocab_size=61, hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2,
            word_embed_proj_dim=16, max_position_embeddings=64,
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_sequences_beyond_learned_positions_are_refused(name: str) -> None:
    """64 positions: a sequence of 64 is scored, one of 65 has no position for its last token."""
    policy = Policy(TABLES[name]())
    group = TokenizedGroup(
        prompts=(np.full(60, 5, np.int32),),
        responses=(np.full(4, 6, np.int32), np.full(2, 7, np.int32)),
        prompt_of=(0, 0),
        preferences=(Preference(0, 1),),
        row_id=0,
        origin="row",
    )
    assert policy(pack([group])).tokens.isfinite().all()
    policy.check_fits(60, 64)
    with pytest.raises(ModelError, match=r"has 64 positions, .* has 65 tokens\. Set batch\.max_tokens to 64"):
        policy.check_fits(60, 65)


def test_a_recipe_knows_every_attention_by_name() -> None:
    """The schema cannot import the kernels, so it repeats their names; check then refuses all others."""
    from typing import get_args

    from prefopt.kernels.prefix_attention import BACKENDS
    from prefopt.recipe import Model, parse_recipe

    names = get_args(Model.model_fields["attention"].annotation)
    assert names == ("auto", *BACKENDS), (
        "write the back-ends of backends.py into Model.attention, in their order"
    )
    text = "{output: o, model: {path: m}, data: {path: d.jsonl}, loss: {name: dpo}, optim: {lr: 1.0e-6}}"
    with pytest.raises(RecipeError, match=r"model\.attention: .*segments"):
        parse_recipe(text, ["model.attention=flash"])


def test_describe_names_what_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the log of a run: ``auto`` has a name once something was scored, the head that of the last call."""
    policy = Policy(toy.llama())
    assert policy.describe() == {"attention": "auto", "head": "not used yet (Linear, scale 1)"}
    policy(batch())
    assert policy.describe() == {"attention": "segments", "head": "chunked (Linear, scale 1)"}
    monkeypatch.setattr("prefopt.policy.head.token_logps", partial(token_logps, impl="naive"))
    policy(batch())
    assert policy.describe()["head"] == "naive (Linear, scale 1)"
    assert Policy(toy.llama(), attention="dense").describe()["attention"] == "dense"


def test_describe_gives_the_reason_and_the_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: layers with a softcap went to flex, the others to flash attention as it is activated."""
    assert describe_back_ends({"varlen": ""}) == "varlen (FA2)"
    used = {"flex": "varlen has no softcap of scores", "varlen": ""}
    monkeypatch.setattr(torch.nn.attention, "current_flash_attention_impl", lambda: "FA3")
    assert describe_back_ends(used) == "flex (varlen has no softcap of scores) and varlen (FA3)"


@pytest.mark.parametrize("name", ["varlen", "flex"])
def test_attention_for_gpus_is_refused_on_the_cpu_before_training(name: str) -> None:
    """The self-check, which every run begins with, ends in one line."""
    policy = Policy(toy.llama(), attention=name)
    with pytest.raises(RecipeError) as caught:
        policy.self_check()
    assert str(caught.value) == f"model.attention: '{name}' runs on NVIDIA GPUs only, not on cpu. Use 'auto'."


def test_the_self_check_judges_the_arithmetic_that_autocast_chooses() -> None:
    """Weights in float32, layers in bfloat16: errors of 8 bits pass, as they do for bfloat16 weights."""
    policy = Policy(toy.llama(dtype=torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert 1e-4 < policy.self_check() < 0.5
