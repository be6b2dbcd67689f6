"""Attention over shared prefixes: the dense truth against separate sequences, the fast path against it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from attention_cases import FORESTS, draw, forest
from lanes import slow_but
from torch import Tensor

from prefopt.errors import RecipeError
from prefopt.kernels import tree_attention
from prefopt.kernels.prefix_attention import BACKENDS, segment_cores
from prefopt.kernels.prefix_attention import segments as fast
from prefopt.kernels.prefix_attention.layout import dense_mask, plan_calls
from prefopt.kernels.prefix_attention.spec import AttentionProblem, Machine
from prefopt.types import Segments


def run(leaves: list[Tensor], segments: Segments, grad: Tensor, **kwargs: Any) -> list[Tensor]:
    """Return the output and the gradient of every leaf."""
    out = tree_attention(
        *leaves[:3], segments, scaling=0.4, sinks=leaves[3] if len(leaves) > 3 else None, **kwargs
    )
    return [out, *torch.autograd.grad((out * grad).sum(), leaves)]


def one_path(query: Tensor, key: Tensor, value: Tensor, rule: dict[str, Any], sinks: Tensor | None) -> Tensor:
    """Attend within one ordinary sequence, one query at a time."""
    rows = []
    group = query.shape[1] // key.shape[1]
    for i in range(query.shape[2]):
        low = 0 if rule["window"] is None else max(0, i - rule["window"] + 1)
        heads = []
        for h in range(query.shape[1]):
            scores = key[0, h // group, low : i + 1] @ query[0, h, i] * 0.4
            if rule["softcap"] is not None:
                scores = rule["softcap"] * torch.tanh(scores / rule["softcap"])
            weights = scores.exp()
            total = weights.sum() + (0 if sinks is None else sinks[h].exp())
            heads.append((weights / total) @ value[0, h // group, low : i + 1])
        rows.append(torch.stack(heads))
    return torch.stack(rows)[None]


@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("sinks", [False, True])
def test_dense_truth_equals_every_path_run_alone(
    window: int | None, softcap: float | None, sinks: bool
) -> None:
    """A token's output is that of the ordinary sequence root -> ... -> token; 1e-12 is float64 rounding."""
    segments = FORESTS["deep_tree"]
    leaves = draw(segments, sinks=sinks)
    rule = {"window": window, "softcap": softcap}
    extra = leaves[3] if sinks else None
    packed = tree_attention(*leaves[:3], segments, scaling=0.4, sinks=extra, impl="dense", **rule)
    for index in range(len(segments)):
        at = [
            token
            for node in (*segments.ancestors(index), index)
            for token in range(segments.starts[node], segments.starts[node] + segments.lengths[node])
        ]
        alone = one_path(*(leaf[:, :, at] for leaf in leaves[:3]), rule, extra)
        torch.testing.assert_close(packed[:, at], alone, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", slow_but(["pair", "deep_tree", "interleaved_trees"], [*FORESTS]))
def test_segments_equal_dense_forward_and_backward(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole trees, in blocks of three queries too, and chains likewise; windows, caps, sinks, grouped heads."""
    segments = FORESTS[name]
    for window in (None, 1, 4):
        for softcap, sinks in ((None, False), (2.0, False), (None, True), (2.0, True)):
            for hq, hkv, dv in ((4, 4, 8), (4, 2, 8), (2, 2, 6)):
                leaves = draw(segments, hq, hkv, dv=dv, sinks=sinks)
                grad = torch.randn(1, sum(segments.lengths), hq, dv, dtype=torch.float64)
                truth = run(leaves, segments, grad, window=window, softcap=softcap, impl="dense")
                for longest, rows, block in ((256, 80, 0), (256, 3, 0), (0, 80, 64 << 20), (0, 80, 100)):
                    monkeypatch.setattr(fast, "LONGEST_DENSE", longest)
                    monkeypatch.setattr(segment_cores, "DENSE_ROWS", rows)
                    monkeypatch.setattr(segment_cores, "BLOCK_BYTES", block)
                    found = run(leaves, segments, grad, window=window, softcap=softcap)
                    for a, b in zip(found, truth, strict=True):
                        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


ANYWHERE = Machine("cpu")
OTHERS = [
    each.name
    for each in BACKENDS.values()
    if each.name != "dense" and each.obstacle(AttentionProblem(torch.float64, 8, 8), ANYWHERE) is None
]
"""Back-ends that serve float64 on a CPU."""


@pytest.mark.parametrize("name", FORESTS)
@pytest.mark.parametrize("impl", OTHERS)
def test_every_back_end_that_serves_here_equals_dense(impl: str, name: str) -> None:
    """With windows, caps and sinks where it takes them; the others need a GPU, and are held there."""
    segments = FORESTS[name]
    for window, softcap, sinks in (
        (None, None, False),
        (4, None, False),
        (1, 2.0, False),
        (None, None, True),
    ):
        problem = AttentionProblem(torch.float64, 8, 8, softcap is not None, sinks)
        if BACKENDS[impl].obstacle(problem, ANYWHERE) is not None:
            continue
        leaves = draw(segments, 4, 2, sinks=sinks)
        grad = torch.randn(1, sum(segments.lengths), 4, 8, dtype=torch.float64)
        found, truth = (
            run(leaves, segments, grad, window=window, softcap=softcap, impl=each) for each in (impl, "dense")
        )
        for a, b in zip(found, truth, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("longest", [256, 0])
def test_gradcheck(longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite differences in float64, softcap and sinks included."""
    monkeypatch.setattr(fast, "LONGEST_DENSE", longest)
    segments = forest([2, 1, 2], [-1, 0, 0])
    for softcap, sinks in ((None, False), (1.5, True)):
        leaves = draw(segments, 2, 1, 4, 4, sinks)

        def op(*inputs: Tensor, cap: float | None = softcap) -> Tensor:
            return tree_attention(
                *inputs[:3], segments, scaling=0.4, softcap=cap, sinks=inputs[3] if len(inputs) > 3 else None
            )

        assert torch.autograd.gradcheck(op, leaves)


@pytest.mark.parametrize("longest", [256, 0])
def test_an_answer_never_sees_its_sibling(longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replacing the first answer leaves the prompt and the second answer bit for bit alike."""
    monkeypatch.setattr(fast, "LONGEST_DENSE", longest)
    segments = FORESTS["pair"]
    leaves = [leaf.detach() for leaf in draw(segments)]
    before = tree_attention(*leaves, segments, scaling=0.4)
    for leaf in leaves:
        leaf[:, :, 5:8] = torch.randn_like(leaf[:, :, 5:8])
    after = tree_attention(*leaves, segments, scaling=0.4)
    outside = [0, 1, 2, 3, 4, 8, 9, 10, 11]
    assert torch.equal(before[:, outside], after[:, outside])
    assert not torch.equal(before[:, 5:8], after[:, 5:8])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("longest", [256, 0])
def test_half_precision_stays_close_to_float64(
    dtype: torch.dtype, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompt gradients from five answers are summed in float32 before they are rounded."""
    monkeypatch.setattr(fast, "LONGEST_DENSE", longest)
    segments = FORESTS["five_answers"]
    wide = draw(segments)
    grad = torch.randn(1, sum(segments.lengths), 4, 8, dtype=torch.float64)
    halves = [leaf.detach().to(dtype).requires_grad_() for leaf in wide]
    exact = [leaf.detach().double().requires_grad_() for leaf in halves]
    truth = run(exact, segments, grad, impl="dense")
    found = run(halves, segments, grad.to(dtype))
    step = torch.finfo(dtype).eps
    for a, b in zip(found, truth, strict=True):
        assert a.dtype == dtype
        # weights, products and sums are each rounded to the half's last bit
        torch.testing.assert_close(a.double(), b, rtol=0, atol=4 * step * float(b.detach().abs().max()))


def test_autocast_brings_queries_and_values_to_one_dtype() -> None:
    """Rotary embeddings leave queries in float32 while values are already bfloat16."""
    segments = FORESTS["pair"]
    query, key, value = (leaf.detach().float() for leaf in draw(segments))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = tree_attention(query, key, value.bfloat16(), segments, scaling=0.4)
    assert out.dtype == torch.bfloat16
    truth = tree_attention(query, key, value, segments, scaling=0.4, impl="dense")
    torch.testing.assert_close(out.float(), truth, rtol=0, atol=0.05)  # 8 bits of values up to 3


def test_short_trees_take_one_call_and_long_ones_a_call_per_chain() -> None:
    """A pair of 5 + 3 + 4 tokens: one call of 12, or prompt with first answer (8) and second answer (4)."""
    pair = FORESTS["pair"]
    (whole,) = plan_calls(pair, None, 12)
    assert (whole.start, whole.stop, whole.groups) == (0, 12, pair)
    chosen, rejected = plan_calls(pair, None, 11)
    assert (chosen.spans, rejected.spans) == (((0, 8),), ((0, 5), (8, 12)))
    assert chosen.is_causal(None) and not rejected.is_causal(None)


def test_a_window_drops_ancestors_that_no_query_reaches() -> None:
    """Prompt of 5, window 3: the second answer's first token sees two prompt tokens."""
    _, rejected = plan_calls(FORESTS["pair"], 3, 0)
    assert rejected.spans == ((3, 5), (8, 12))
    _, alone = plan_calls(FORESTS["pair"], 1, 0)
    assert alone.spans == ((8, 12),)


def test_dense_mask_by_hand() -> None:
    """Prompt of two, answers of one and two tokens, window of two along each path."""
    mask = dense_mask(forest([2, 1, 2], [-1, 0, 0]), 2, torch.device("cpu"))
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 1, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]


def test_attention_is_an_average_by_hand() -> None:
    """Zero queries weigh all visible values alike: the answer after prompt values 1, 3 gives (1+3+8)/3 = 4."""
    segments = forest([2, 1, 1], [-1, 0, 0])
    value = torch.tensor([1.0, 3.0, 8.0, -1.0]).view(1, 1, 4, 1)
    zeros = torch.zeros(1, 1, 4, 1)
    out = tree_attention(zeros, zeros, value, segments, scaling=1.0).flatten()
    assert out.tolist() == pytest.approx([1.0, 2.0, 4.0, 1.0], rel=1e-6)
    sunk = tree_attention(zeros, zeros, value, segments, scaling=1.0, sinks=torch.tensor([math.log(3.0)]))
    # a sink of weight 3 beside n values: n / (n + 3) of the average
    assert sunk.flatten().tolist() == pytest.approx([1 / 4, 4 / 5, 12 / 6, 3 / 6], rel=1e-6)


def test_refuses_unknown_names_and_rows_that_segments_do_not_cover() -> None:
    """Each mistake is one line."""
    segments = FORESTS["pair"]
    leaves = draw(segments)
    with pytest.raises(RecipeError, match="tree_attention: impl 'flux' does not exist"):
        tree_attention(*leaves, segments, scaling=1.0, impl="flux")
    with pytest.raises(RecipeError, match="tree_attention: impl 'flex' runs on NVIDIA GPUs only, not on cpu"):
        tree_attention(*leaves, segments, scaling=1.0, impl="flex")
    with pytest.raises(ValueError, match="segments of 6 tokens"):
        tree_attention(*leaves, FORESTS["prompt_alone"], scaling=1.0)


def test_a_small_row_is_cut_as_the_file_says() -> None:
    """``P P C R R``: the example at the top of ``segments.py``."""
    segments = forest([2, 1, 2], [-1, 0, 0])
    (tree,) = plan_calls(segments, None, 5)
    assert (tree.start, tree.stop, tree.spans) == (0, 5, ((0, 5),))
    seen = [row.nonzero().flatten().tolist() for row in tree.visible(None, torch.device("cpu"))]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 3], [0, 1, 3, 4]]
    first, second = plan_calls(segments, None, 0)
    assert (first.start, first.stop, first.spans) == (0, 3, ((0, 3),)) and first.is_causal(None)
    assert (second.start, second.stop, second.spans) == (3, 5, ((0, 2), (3, 5)))
    total = torch.empty(1, 5, 1)
    fast._give(total, torch.tensor([1.0, 2, 3]).view(1, 3, 1), first)
    fast._give(total, torch.tensor([10.0, 20, 4, 5]).view(1, 4, 1), second)
    assert total.flatten().tolist() == [11, 22, 3, 4, 5]
