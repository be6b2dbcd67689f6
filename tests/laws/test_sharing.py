"""Sharing a prompt changes nothing: packed scoring equals ordinary scoring, values and gradients, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
import toy
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from prefopt.data.packs.pack import pack
from prefopt.kernels.prefix_attention import segments
from prefopt.policy import Policy
from prefopt.types import PackedBatch, Preference, Segments, TokenizedGroup

VOCABULARY = toy.VOCABULARY


def llama() -> PreTrainedModel:
    """Rotary positions, grouped heads, untied head."""
    return toy.llama()


def tied_llama() -> PreTrainedModel:
    """The embedding is the head, so its gradient has two sources."""
    model = toy.llama()
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    return model


def gpt2() -> PreTrainedModel:
    """Learned positions, tied head."""
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=16,
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


MODELS: list[Callable[[], PreTrainedModel]] = [llama, tied_llama, gpt2]
every_model = pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)


def ids(*lengths: int, seed: int = 0) -> list[np.ndarray]:
    """Draw token runs of these lengths."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCABULARY, size=length).astype(np.int32) for length in lengths]


def group(prompt: np.ndarray, *answers: np.ndarray) -> TokenizedGroup:
    """Prefer the first answer to every other."""
    return TokenizedGroup(
        prompts=(prompt,),
        responses=tuple(answers),
        prompt_of=(0,) * len(answers),
        preferences=tuple(Preference(0, k) for k in range(1, len(answers))),
        row_id=0,
        origin="law",
    )


GROUPS = {
    "pair": [group(*ids(7, 5, 6))],
    "one_token_answers": [group(*ids(4, 1, 1))],
    "one_token_prompt": [group(*ids(1, 3, 2))],
    "five_answers": [group(*ids(6, 3, 1, 5, 2, 4))],
    "three_groups": [
        group(*ids(7, 5, 6, seed=1)),
        group(*ids(2, 1, 9, seed=2)),
        group(*ids(11, 4, 1, 3, seed=3)),
    ],
}


def plain_logps(model: PreTrainedModel, prompt: np.ndarray, answer: np.ndarray) -> Tensor:
    """Score one answer as anybody would: one unpadded sequence, full logits, log-softmax."""
    sequence = torch.from_numpy(np.concatenate([prompt, answer]).astype(np.int64))[None]
    logits = model(input_ids=sequence, attention_mask=torch.ones_like(sequence), use_cache=False).logits
    scores = logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return scores.gather(-1, sequence[0, len(prompt) :, None]).squeeze(-1)


def separate(model: PreTrainedModel, groups: Sequence[TokenizedGroup]) -> Tensor:
    """Score every answer of every group on its own."""
    return torch.cat(
        [
            plain_logps(model, g.prompts[i], answer)
            for g in groups
            for i, answer in zip(g.prompt_of, g.responses, strict=True)
        ]
    )


def gradients(model: PreTrainedModel, logps: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    """Return the gradient of every parameter for one upstream gradient per scored token."""
    model.zero_grad(set_to_none=True)
    (logps * upstream).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Compare parameter gradients to 1e-10 of each parameter's largest entry."""
    assert found.keys() == wanted.keys()
    for name, grad in wanted.items():
        scale = float(grad.abs().max())
        assert scale > 0 or name.endswith("c_attn.bias") or "wpe" in name, (
            f"{name} has no gradient to compare"
        )
        torch.testing.assert_close(found[name], grad, rtol=1e-10, atol=1e-10 * scale + 1e-15, msg=name)


@every_model
@pytest.mark.parametrize("attention", ["segments", "dense"])
@pytest.mark.parametrize("name", GROUPS)
def test_shared_equals_separate(name: str, attention: str, build: Callable[[], PreTrainedModel]) -> None:
    """Log-probs and every parameter's gradient; the prompt receives the sum over its answers."""
    groups, model = GROUPS[name], build()
    wanted = separate(model, groups)
    upstream = torch.randn_like(wanted)
    wanted_grads = gradients(model, wanted, upstream)
    policy = Policy(model, attention=attention)
    found = policy(pack(groups)).tokens
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    assert_same(gradients(model, found, upstream), wanted_grads)


def test_padding_free_without_sharing_is_the_same() -> None:
    """Prompts repeated before every answer give the same values and gradients."""
    model = llama()
    policy = Policy(model)
    groups = GROUPS["three_groups"]
    shared = policy(pack(groups)).tokens
    upstream = torch.randn_like(shared)
    shared_grads = gradients(model, shared, upstream)
    repeated = policy(pack(groups, share_prompts=False)).tokens
    torch.testing.assert_close(repeated, shared, rtol=1e-10, atol=1e-12)
    assert_same(gradients(model, repeated, upstream), shared_grads)


@every_model
def test_packed_equals_padded(build: Callable[[], PreTrainedModel]) -> None:
    """The usual left-aligned padded batch with an attention mask scores every answer alike."""
    groups, model = GROUPS["three_groups"], build()
    rows = [(g.prompts[0], answer) for g in groups for answer in g.responses]
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    batch, mask = (
        torch.zeros(len(rows), width, dtype=torch.int64),
        torch.zeros(len(rows), width, dtype=torch.int64),
    )
    for row, (prompt, answer) in enumerate(rows):
        sequence = np.concatenate([prompt, answer]).astype(np.int64)
        batch[row, : len(sequence)], mask[row, : len(sequence)] = torch.from_numpy(sequence), 1
    scores = model(input_ids=batch, attention_mask=mask, use_cache=False).logits.log_softmax(-1)
    picked = scores[:, :-1].gather(-1, batch[:, 1:, None]).squeeze(-1)
    padded = torch.cat([picked[row, len(p) - 1 : len(p) + len(a) - 1] for row, (p, a) in enumerate(rows)])
    packed = Policy(model)(pack(groups)).tokens
    torch.testing.assert_close(packed, padded, rtol=1e-10, atol=1e-12)


@every_model
def test_answers_do_not_see_each_other(build: Callable[[], PreTrainedModel]) -> None:
    """Other tokens in one answer leave the other's log-probs bit for bit alike, both ways round."""
    prompt, chosen, rejected, other, another = ids(7, 5, 6, 5, 6)
    policy = Policy(build())
    before = policy(pack([group(prompt, chosen, rejected)])).tokens
    assert torch.equal(policy(pack([group(prompt, other, rejected)])).tokens[5:], before[5:])
    assert torch.equal(policy(pack([group(prompt, chosen, another)])).tokens[:5], before[:5])


def test_no_gradient_flows_from_one_answer_to_the_other() -> None:
    """The gradient of logp(rejected) at the chosen answer's embeddings is exactly zero; at the prompt's it is not."""
    model = llama()
    seen: list[Tensor] = []

    def keep(_module: torch.nn.Module, _inputs: object, output: Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    model.get_input_embeddings().register_forward_hook(keep)
    Policy(model)(pack(GROUPS["pair"])).tokens[5:].sum().backward()
    grad = seen[0].grad
    assert grad is not None
    assert grad[0, 7:12].abs().max() == 0
    assert grad[0, :7].abs().min() > 0


def test_pack_order_changes_nothing() -> None:
    """Groups packed in another order score alike: nothing leaks between them."""
    groups = [group(*ids(5 + k, 3, 4, seed=k)) for k in range(5)]
    policy = Policy(llama())
    before = policy(pack(groups)).total
    order = [3, 0, 4, 1, 2]
    after = policy(pack([groups[k] for k in order])).total
    wanted = torch.cat([before[2 * k : 2 * k + 2] for k in order])
    torch.testing.assert_close(after, wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("longest", [1024, 100])
def test_long_rows_are_exact_whole_and_cut_into_chains(longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 + 60 + 70 tokens in several blocks of queries, and beyond the dense limit by the fused path."""
    monkeypatch.setattr(segments, "LONGEST_DENSE", longest)
    model = toy.llama()
    model.config.max_position_embeddings = 512
    groups = [group(*ids(200, 60, 70)), group(*ids(9, 3, 4))]
    wanted = separate(model, groups)
    upstream = torch.randn_like(wanted)
    wanted_grads = gradients(model, wanted, upstream)
    found = Policy(model)(pack(groups)).tokens
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-11)
    assert_same(gradients(model, found, upstream), wanted_grads)


TREE = ((4, -1), (3, 0), (2, 1), (5, 1), (2, 0), (3, 4), (1, 4), (6, -1), (2, 7))
"""Length and parent of every node: two roots, and answers that branch twice."""


def tree_batch() -> tuple[PackedBatch, list[tuple[np.ndarray, np.ndarray]]]:
    """Lay out the tree, scoring every leaf from its root on; also return each leaf as (prompt, rest)."""
    runs = ids(*(length for length, _ in TREE))
    parents = tuple(parent for _, parent in TREE)
    lengths = tuple(length for length, _ in TREE)
    starts = tuple(int(sum(lengths[:k])) for k in range(len(lengths)))
    forest = Segments(starts, lengths, parents)
    leaves = [k for k in range(len(TREE)) if k not in parents]
    positions, score_at, targets, sequences = [], [], [], []
    for k in range(len(TREE)):
        depth = sum(lengths[a] for a in forest.ancestors(k))
        positions += range(depth, depth + lengths[k])
    for leaf in leaves:
        path = [*forest.ancestors(leaf), leaf]
        at = [starts[node] + i for node in path for i in range(lengths[node])]
        tokens = np.concatenate([runs[node] for node in path])
        first = lengths[path[0]]
        score_at += at[first - 1 : -1]
        targets += tokens[first:].tolist()
        sequences.append((tokens[:first], tokens[first:]))
    batch = PackedBatch(
        input_ids=torch.from_numpy(np.concatenate(runs).astype(np.int64)),
        position_ids=torch.tensor(positions),
        segments=forest,
        score_at=torch.tensor(score_at),
        target_ids=torch.tensor(targets),
        lengths=tuple(len(rest) for _, rest in sequences),
        pairs=(),
        pair_weight=torch.zeros(0),
        pair_margin=torch.zeros(0),
        groups=(0, len(leaves)),
        row_ids=(0,),
        origins=("law",),
        keys=tuple(b"" for _ in leaves),
    )
    return batch, sequences


@every_model
def test_trees_of_any_depth(build: Callable[[], PreTrainedModel]) -> None:
    """Inner nodes shared by several leaves are computed once and receive all their gradients."""
    model = build()
    batch, sequences = tree_batch()
    wanted = torch.cat([plain_logps(model, prompt, rest) for prompt, rest in sequences])
    upstream = torch.randn_like(wanted)
    wanted_grads = gradients(model, wanted, upstream)
    found = Policy(model)(batch).tokens
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    assert_same(gradients(model, found, upstream), wanted_grads)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("build", [llama, gpt2], ids=lambda build: build.__name__)
def test_checkpointing_recomputes_the_same_attention(
    build: Callable[[], PreTrainedModel], reentrant: bool
) -> None:
    """The layout reaches the layers again when the backward runs them a second time."""
    groups, model = GROUPS["three_groups"], build()
    policy = Policy(model)
    model.train()
    plain = policy(pack(groups)).tokens
    upstream = torch.randn_like(plain)
    wanted = gradients(model, plain, upstream)
    calls: list[int] = []
    layers = model.base_model.layers if hasattr(model.base_model, "layers") else model.base_model.h
    next(layers[0].children()).register_forward_hook(lambda *_: calls.append(1))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    found = policy(pack(groups)).tokens
    assert torch.equal(found, plain)
    assert_same(gradients(model, found, upstream), wanted)
    assert len(calls) == 2


def test_gradients_of_statistics_survive_sharing() -> None:
    """Entropy and the sum of squared probabilities, too, send the same gradients through a shared prompt."""
    groups, model = GROUPS["five_answers"], llama()
    rows = [(g.prompts[0], answer) for g in groups for answer in g.responses]
    wanted = {"entropy": [], "log_sum_p2": []}
    for prompt, answer in rows:
        sequence = torch.from_numpy(np.concatenate([prompt, answer]).astype(np.int64))[None]
        log_p = model(input_ids=sequence).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        wanted["entropy"].append(-(log_p.exp() * log_p).sum(-1))
        wanted["log_sum_p2"].append((2 * log_p).logsumexp(-1))
    joined = torch.cat([*wanted["entropy"], *wanted["log_sum_p2"]])
    upstream = torch.randn_like(joined)
    wanted_grads = gradients(model, joined, upstream)
    result = Policy(model)(pack(groups), stats=("log_sum_p2", "entropy"))
    found = torch.cat([result.stats["entropy"], result.stats["log_sum_p2"]])
    torch.testing.assert_close(found, joined, rtol=1e-10, atol=1e-12)
    assert_same(gradients(model, found, upstream), wanted_grads)
