"""Prefix attention on a GPU: varlen and flex against float64, bits, recompilations, syncs. Run ``pytest -m gpu``.

FlexAttention has no backward on the CPU, and flash attention does not run there at all, so their kernels are
compared here only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from attention_cases import draw, forest, random_forest
from torch import Tensor

from prefopt.kernels import tree_attention
from prefopt.kernels.prefix_attention import BACKENDS
from prefopt.kernels.prefix_attention.flex import filled_size
from prefopt.kernels.prefix_attention.spec import AttentionProblem, Machine, Rule
from prefopt.kernels.prefix_attention.varlen import varlen_attention
from prefopt.policy import Policy
from prefopt.types import Segments

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # the compiler warns about settings and internals of its own
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]
PACKS = {
    "pairs": forest([300, 90, 130, 1, 40, 64, 257, 128, 128], [-1, 0, 0, -1, 3, 3, -1, 6, 6]),
    "five_answers": forest([500, 30, 200, 1, 65, 128], [-1, 0, 0, 0, 0, 0]),
    "single_answers": forest([200, 300, 129, 127], [-1, 0, -1, 2]),
    "deep_tree": random_forest(1, 14, 90),
}
HEADS = [(16, 8, 128), (8, 8, 64), (4, 1, 256)]
HALF_ERROR = 1e-2
"""Norm of the error over the norm: products take operands of 8 bits (2^-9 each), some after the other."""


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    """Leave what a test sets globally as it was."""
    precision = torch.get_float32_matmul_precision()
    yield
    torch.use_deterministic_algorithms(False)
    torch.cuda.set_sync_debug_mode("default")
    torch.set_float32_matmul_precision(precision)


def leaves_of(
    segments: Segments, heads: tuple[int, int, int], dtype: torch.dtype, sinks: bool = False
) -> list[Tensor]:
    hq, hkv, width = heads
    leaves = draw(segments, hq, hkv, width, width, sinks, device="cuda")
    return [leaf.detach().to(dtype).requires_grad_() for leaf in leaves]


HALF = AttentionProblem(torch.bfloat16, 128, 128)
ON_GPUS = [name for name, each in BACKENDS.items() if each.obstacle(HALF, Machine("cpu")) is not None]
"""Back-ends that only a GPU serves."""


def run(leaves: list[Tensor], segments: Segments, upstream: Tensor, impl: str, **rule: Any) -> list[Tensor]:
    """Return output and the gradient of every leaf."""
    query, key, value, *sinks = leaves
    given = {"scaling": query.shape[-1] ** -0.5, "sinks": sinks[0] if sinks else None, **rule}
    out = tree_attention(query, key, value, segments, impl=impl, **given)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream.to(out.dtype))]


def upstream_of(leaves: list[Tensor]) -> Tensor:
    return torch.randn_like(leaves[0].transpose(1, 2))


def errors(leaves: list[Tensor], segments: Segments, impl: str, **rule: Any) -> list[float]:
    """Return the relative error of output and gradients against the dense mask in float64."""
    upstream = upstream_of(leaves)
    found = run(leaves, segments, upstream, impl, **rule)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    wanted = run(exact, segments, upstream.double(), "dense", **rule)
    return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, wanted, strict=True)]


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("name", PACKS)
@pytest.mark.parametrize("impl", ON_GPUS)
def test_bfloat16_is_close_to_float64(impl: str, name: str, heads: tuple[int, int, int]) -> None:
    """Output and all gradients, prompts shared by five answers and windows shorter than a prompt among them."""
    for window in (None, 100):
        leaves = leaves_of(PACKS[name], heads, torch.bfloat16)
        assert max(errors(leaves, PACKS[name], impl, window=window)) < HALF_ERROR


@pytest.mark.parametrize("impl", ON_GPUS)
def test_float16_is_closer_than_bfloat16(impl: str) -> None:
    """11 bits instead of 8: an eighth of the error."""
    leaves = leaves_of(PACKS["pairs"], (16, 8, 128), torch.float16)
    assert max(errors(leaves, PACKS["pairs"], impl)) < HALF_ERROR / 4


@pytest.mark.parametrize("name", PACKS)
def test_flex_with_softcap_and_sinks(name: str) -> None:
    """The gradients of the sinks too, in bfloat16 and, without TF32, in single precision."""
    torch.set_float32_matmul_precision("highest")
    # float32 sums of some hundred products
    for dtype, most in ((torch.bfloat16, HALF_ERROR), (torch.float32, 2e-5)):
        leaves = leaves_of(PACKS[name], (8, 2, 64), dtype, sinks=True)
        assert max(errors(leaves, PACKS[name], "flex", window=100, softcap=5.0)) < most


def test_flex_with_values_of_another_width() -> None:
    """As in DeepSeek's attention: keys of 192, values of 128."""
    segments = PACKS["pairs"]
    leaves = [
        leaf.detach().bfloat16().requires_grad_() for leaf in draw(segments, 4, 4, 192, 128, device="cuda")
    ]
    upstream = torch.randn(1, sum(segments.lengths), 4, 128, device="cuda", dtype=torch.bfloat16)
    found = run(leaves, segments, upstream, "flex")
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    for a, b in zip(found, run(exact, segments, upstream.double(), "dense"), strict=True):
        assert (a.double() - b).norm() / b.norm() < HALF_ERROR


@pytest.mark.parametrize("impl", ON_GPUS)
def test_an_answer_never_sees_its_sibling(impl: str) -> None:
    """Replacing the first answer leaves the prompt and the second answer bit for bit alike."""
    segments = PACKS["pairs"]
    leaves = [leaf.detach() for leaf in leaves_of(segments, (8, 2, 64), torch.bfloat16)]
    before = tree_attention(*leaves, segments, scaling=0.1, impl=impl)
    for leaf in leaves:
        leaf[:, :, 300:390] = torch.randn_like(leaf[:, :, 300:390])
    after = tree_attention(*leaves, segments, scaling=0.1, impl=impl)
    assert torch.equal(before[:, :300], after[:, :300]) and torch.equal(before[:, 390:], after[:, 390:])
    assert not torch.equal(before[:, 300:390], after[:, 300:390])


@pytest.mark.parametrize("impl", ON_GPUS)
def test_the_same_call_gives_the_same_bits(impl: str) -> None:
    """Flash attention adds up query gradients in any order unless torch is told to be deterministic."""
    torch.use_deterministic_algorithms(impl == "varlen")
    segments = PACKS["five_answers"]
    leaves = leaves_of(segments, (16, 8, 128), torch.bfloat16)
    upstream = upstream_of(leaves)
    first = run(leaves, segments, upstream, impl)
    for _ in range(3):
        assert all(
            torch.equal(a, b) for a, b in zip(first, run(leaves, segments, upstream, impl), strict=True)
        )


def test_key_and_value_gradients_of_varlen_have_one_order_anyway() -> None:
    """Without torch's deterministic mode, sums over answers still have a fixed order, and flash's own too."""
    segments = PACKS["five_answers"]
    leaves = leaves_of(segments, (16, 8, 128), torch.bfloat16)
    upstream = upstream_of(leaves)
    first = run(leaves, segments, upstream, "varlen")
    for _ in range(3):
        again = run(leaves, segments, upstream, "varlen")
        assert all(torch.equal(first[at], again[at]) for at in (0, 2, 3))


def packings(count: int) -> list[Segments]:
    """Draw packs of nine segments, all filled up to 2048 tokens."""
    numbers = np.random.default_rng(0)
    parents = [-1, 0, 0, -1, 3, 4, 3, -1, 7]
    found = [forest(numbers.integers(175, 225, 9).tolist(), parents) for _ in range(count)]
    assert {filled_size(sum(segments.lengths)) for segments in found} == {2048}
    return found


def test_twenty_packings_are_compiled_once() -> None:
    """Windows or none, other forests and lengths: no graph after the first, forward or backward."""
    counts = torch._dynamo.utils.counters["stats"]
    seen = []
    for turn, segments in enumerate(packings(20)):
        leaves = leaves_of(segments, (8, 2, 64), torch.bfloat16)
        run(leaves, segments, upstream_of(leaves), "flex", window=150 if turn % 2 else None)
        seen.append(counts["unique_graphs"])
    assert len(set(seen)) == 1


@pytest.mark.parametrize("impl", ON_GPUS)
def test_the_host_never_waits_for_the_gpu(impl: str) -> None:
    """A new packing, its layout included, forward and backward, after the first has warmed up."""
    first, *others = packings(4)
    problems = [(segments, leaves_of(segments, (8, 2, 64), torch.bfloat16)) for segments in (first, *others)]
    upstreams = [upstream_of(leaves) for _, leaves in problems]
    for turn, ((segments, leaves), upstream) in enumerate(zip(problems, upstreams, strict=True)):
        torch.cuda.set_sync_debug_mode("error" if turn else "default")
        run(leaves, segments, upstream, impl)
    torch.cuda.set_sync_debug_mode("default")


def test_gathered_keys_are_not_kept() -> None:
    """A prompt of 4096 with eight answers: what lives until the backward is q, k, v, output and log-sum-exps."""
    segments = forest([4096, *([64] * 8)], [-1, *([0] * 8)])
    query, key, value = leaves_of(segments, (8, 8, 128), torch.bfloat16)
    rule = Rule(0.1)
    varlen_attention(query, key, value, None, segments, rule)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    out = varlen_attention(query, key, value, None, segments, rule)
    kept = torch.cuda.memory_allocated() - before
    assert kept < 1.2 * (out.numel() * out.element_size() + 4 * out.shape[1] * 8)


MODELS = {
    "varlen (FA2)": transformers.LlamaConfig(
        vocab_size=97, hidden_size=128, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32,
    ),
    "flex (varlen has no softcap of scores)": transformers.Gemma2Config(
        vocab_size=97, hidden_size=128, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, sliding_window=16, attn_logit_softcapping=20.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("used", MODELS)
def test_a_policy_proves_itself_and_says_what_it_uses(used: str) -> None:
    """Packed scores of a tiny model equal separate ones by transformers' own attention."""
    model = transformers.AutoModelForCausalLM.from_config(MODELS[used]).to("cuda", torch.bfloat16)
    policy = Policy(model)
    policy.self_check()
    assert policy.describe()["attention"] == used
