"""Prefix attention by gathered keys: the very autograd function of the GPU, run in float64 over a plain op."""

from __future__ import annotations

import pytest
import torch
from attention_cases import FORESTS, PlainOp, draw, forest, random_forest
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from prefopt.kernels.prefix_attention.dense import dense_attention
from prefopt.kernels.prefix_attention.spec import Rule
from prefopt.kernels.prefix_attention.varlen import gather_of, varlen_attention
from prefopt.types import Segments

CPU = torch.device("cpu")


def both(segments: Segments, leaves: list[Tensor], rule: Rule) -> list[tuple[Tensor, Tensor]]:
    """Return output and gradients of query, key and value, by gathering and by the dense mask."""
    query, key, value = leaves
    outs = (
        varlen_attention(query, key, value, None, segments, rule, op=PlainOp()),
        dense_attention(query, key, value, None, segments, rule),
    )
    upstream = torch.randn_like(outs[0])
    found = [(out, *torch.autograd.grad(out, leaves, upstream)) for out in outs]
    return list(zip(*found, strict=True))


@pytest.mark.parametrize("name", FORESTS)
def test_equals_dense_forward_and_backward(name: str) -> None:
    """Every forest, windows shorter than the prompt too, equal and grouped heads; 1e-12 is float64 rounding."""
    segments = FORESTS[name]
    for window in (None, 1, 2, 4):
        for heads in ((4, 4), (4, 2), (3, 1)):
            for found, truth in both(segments, draw(segments, *heads), Rule(0.4, window)):
                torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_equals_dense_on_random_forests(seed: int) -> None:
    """Fifteen segments of up to seven tokens below any earlier one, trees interleaved."""
    segments = random_forest(seed, 15, 7)
    for window in (None, 5):
        for found, truth in both(segments, draw(segments), Rule(0.4, window)):
            torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("answers", [1, 2, 5])
def test_equals_dense_for_any_number_of_answers(answers: int) -> None:
    """Two prompts, one of a single token; one answer is plain causal attention and gathers nothing."""
    segments = forest(
        [6, *([3] * answers), 1, *([2] * answers)], [-1, *([0] * answers), -1, *([answers + 1] * answers)]
    )
    for found, truth in both(segments, draw(segments), Rule(0.4)):
        torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-12)
    assert (gather_of(segments, None, CPU).rows is None) == (answers == 1)


def test_gradcheck() -> None:
    """Finite differences in float64, with and without a window."""
    segments = forest([2, 1, 2, 1], [-1, 0, 0, 1])
    for window in (None, 2):

        def op(q: Tensor, k: Tensor, v: Tensor, reach: int | None = window) -> Tensor:
            return varlen_attention(q, k, v, None, segments, Rule(0.4, reach), op=PlainOp())

        assert torch.autograd.gradcheck(op, draw(segments, 2, 1, 3, 3))


def test_layout_of_a_pair_by_hand() -> None:
    """Prompt of 5, answers of 3 and 4: queries 0-8, 8-12; keys prompt with first, then prompt and second."""
    gather = gather_of(FORESTS["pair"], None, CPU)
    at = gather.sequences
    assert (at.cu_queries.tolist(), at.cu_keys.tolist()) == ([0, 8, 12], [0, 8, 17])
    assert (at.longest_queries, at.longest_keys) == (8, 9)
    assert gather.rows is not None
    assert gather.rows.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 8, 9, 10, 11]
    # prompt token 0 was read as rows 0 and 8, in that order
    assert gather.places.tolist()[:4] == [0, 8, 1, 9]
    assert gather.offsets.tolist() == [0, 2, 4, 6, 8, 10, 11, 12, 13, 14, 15, 16, 17]
    assert all(part.dtype == torch.int32 for part in (at.cu_queries, at.cu_keys, gather.rows, gather.places))


def test_a_window_gathers_only_what_it_reaches() -> None:
    """Window 3: the second answer's first token sees two prompt tokens, so 2 + 4 keys are gathered."""
    at = gather_of(FORESTS["pair"], 3, CPU).sequences
    assert at.cu_keys.tolist() == [0, 8, 14]


def test_layers_share_one_layout_and_checkpointing_repeats_the_forward() -> None:
    """Three layers, twice forward by checkpointing: one layout in all, and the gradients of plain layers."""
    segments = FORESTS["two_pairs"]
    query, key, value = draw(segments, 4, 4)
    op, rule = PlainOp(), Rule(0.4, 6)

    def layer(x: Tensor) -> Tensor:
        return varlen_attention(x, key, value, None, segments, rule, op=op).transpose(1, 2)

    gather_of.cache_clear()
    plain = layer(layer(layer(query)))
    wanted = torch.autograd.grad(plain.sum(), (query, key, value))
    kept = query
    for _ in range(3):
        kept = checkpoint(layer, kept, use_reentrant=False)
    found = torch.autograd.grad(kept.sum(), (query, key, value))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert gather_of.cache_info().misses == 1
    assert op.calls.count("forward") == 9 and op.calls.count("backward") == 6


def test_nothing_gathered_is_kept_for_the_backward() -> None:
    """Five answers would keep five copies of the prompt; saved are q, k, v, output and log-sum-exps."""
    segments = FORESTS["five_answers"]
    query, key, value = draw(segments)
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        varlen_attention(query, key, value, None, segments, Rule(0.4), op=PlainOp())
    assert sizes == [query.numel(), key.numel(), value.numel(), query.numel(), 4 * 13]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_prompt_gradients_are_added_up_in_single_precision(dtype: torch.dtype) -> None:
    """256 answers after one prompt token: its value's gradient is the float32 sum, rounded once.

    Added up in half precision, 256 parts near 1 would stop growing at 2 ^ 8 or 2 ^ 11 bits.
    """
    segments = forest([1, *([1] * 256)], [-1, *([0] * 256)])
    leaves = [leaf.detach().to(dtype).requires_grad_() for leaf in draw(segments, 1, 1)]
    parts: list[Tensor] = []

    class Spy(PlainOp):
        def backward(self, *args: object, **kwargs: object) -> tuple[Tensor, Tensor, Tensor]:
            grads = super().backward(*args, **kwargs)  # type: ignore[arg-type]
            parts.extend(grads)
            return grads

    out = varlen_attention(*leaves, None, segments, Rule(0.4), op=Spy())
    _, dkey, dvalue = torch.autograd.grad(out, leaves, 1 + torch.rand_like(out))
    gather = gather_of(segments, None, CPU)
    assert gather.rows is not None
    for whole, part in ((dkey, parts[1]), (dvalue, parts[2])):
        exact = part.double()[gather.rows == 0].sum(0)
        # one rounding of the sum, plus what float32 loses over 256 parts
        torch.testing.assert_close(whole[0, :, 0].double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-3)


def test_inputs_in_any_layout_and_an_expanded_upstream_gradient() -> None:
    """Heads' widths need not be the innermost stride, and ``sum()`` sends a gradient without strides."""
    segments = FORESTS["two_pairs"]
    leaves = [leaf.detach().mT.contiguous().mT.requires_grad_() for leaf in draw(segments)]
    out = varlen_attention(*leaves, None, segments, Rule(0.4), op=PlainOp())
    truth = dense_attention(*leaves, None, segments, Rule(0.4))
    for a, b in zip(
        torch.autograd.grad(out.sum(), leaves), torch.autograd.grad(truth.sum(), leaves), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_a_small_row_is_gathered_as_the_docstring_says() -> None:
    """``P P C R R``: the prompt is read by both sequences."""
    gather = gather_of(forest([2, 1, 2], [-1, 0, 0]), None, torch.device("cpu"))
    assert gather.rows is not None and gather.rows.tolist() == [0, 1, 2, 0, 1, 3, 4]
    assert gather.places.tolist() == [0, 3, 1, 4, 2, 5, 6]
    assert gather.offsets.tolist() == [0, 2, 4, 5, 6, 7]
