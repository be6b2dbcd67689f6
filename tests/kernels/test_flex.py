"""Prefix attention by blocks: the mask token by token and block by block, and FlexAttention over it.

Without a compiler FlexAttention spells its arithmetic out. It refuses gradients on the CPU although that
form has them; here the refusal is lifted. Its GPU kernels are compared in ``test_prefix_attention_gpu``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from attention_cases import FORESTS, draw, forest, random_forest
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.attention.flex_attention import BlockMask

from prefopt.kernels.prefix_attention import flex
from prefopt.kernels.prefix_attention.blocks import block_kinds, token_rule
from prefopt.kernels.prefix_attention.dense import dense_attention
from prefopt.kernels.prefix_attention.flex import (
    FilledAttention,
    filled_attention,
    filled_size,
    flex_attention,
    mask_of,
)
from prefopt.kernels.prefix_attention.layout import dense_mask
from prefopt.kernels.prefix_attention.spec import Rule
from prefopt.types import Segments

CPU = torch.device("cpu")
CASES = {**FORESTS, **{f"random_{seed}": random_forest(seed, 12, 9) for seed in range(8)}}


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> FilledAttention:
    """Give FlexAttention without a compiler and with gradients; it holds all scores, which tests can afford."""
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(torch_flex, "_validate_device", lambda query, key, value: None)
    return filled_attention


def assert_equals_dense(
    segments: Segments, leaves: list[Tensor], rule: Rule, scores: FilledAttention
) -> None:
    """Compare output and every gradient."""
    query, key, value, *sinks = leaves
    given = (query, key, value, sinks[0] if sinks else None, segments, rule)
    found, wanted = flex_attention(*given, attend=scores), dense_attention(*given)
    assert found.shape == wanted.shape == (1, sum(segments.lengths), query.shape[1], value.shape[3])
    upstream = torch.randn_like(wanted)
    ours, truths = (torch.autograd.grad(out, leaves, upstream) for out in (found, wanted))
    for a, b in zip((found, *ours), (wanted, *truths), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def truth(segments: Segments, window: int | None, size: int) -> np.ndarray[Any, Any]:
    """Return the dense mask of a row filled up to ``size``; every filler sees itself."""
    num_tokens = sum(segments.lengths)
    full = np.eye(size, dtype=bool)
    full[:num_tokens, :num_tokens] = dense_mask(segments, window, CPU).numpy()
    return full


@pytest.mark.parametrize("name", CASES)
def test_the_rule_of_four_numbers_is_the_dense_mask(name: str) -> None:
    """Every pair of tokens, fillers too, with windows of one token and shorter than the prompts."""
    segments = CASES[name]
    size = sum(segments.lengths) + 3
    for window in (None, 1, 4):
        assert np.array_equal(token_rule(segments, window, size).visible(), truth(segments, window, size))


@pytest.mark.parametrize("name", CASES)
def test_blocks_are_empty_partial_or_full_exactly(name: str) -> None:
    """Blocks of 1, 2 and 4 tokens against the dense mask: none left out, none called full that is not."""
    segments = CASES[name]
    for block, spare in ((1, 0), (2, 1), (4, 0), (4, 1)):
        size = (-(-sum(segments.lengths) // block) + spare) * block
        for window in (None, 1, 2, 5):
            tiles = truth(segments, window, size).reshape(size // block, block, size // block, block)
            wanted = tiles.any((1, 3)).astype(int) + tiles.all((1, 3))
            assert np.array_equal(block_kinds(segments, window, size, block), wanted)


def test_blocks_of_a_pair_by_hand() -> None:
    """Prompt of 4, answers of 2 and 4, blocks of 2: the second answer skips the first, prompt blocks are full."""
    kinds = block_kinds(forest([4, 2, 4], [-1, 0, 0]), None, 12, 2)
    assert kinds.tolist() == [
        [1, 0, 0, 0, 0, 0],
        [2, 1, 0, 0, 0, 0],
        [2, 2, 1, 0, 0, 0],
        [2, 2, 0, 1, 0, 0],
        [2, 2, 0, 2, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


def test_the_mask_holds_those_blocks_in_the_form_torch_makes_itself() -> None:
    """Rows of keys and, transposed, of queries; ``to_dense`` reads the former back."""
    segments = random_forest(3, 10, 9)
    kinds = block_kinds(segments, 6, 64, 4)
    mask = mask_of(segments, 6, 64, 4, CPU)
    assert np.array_equal(mask.to_dense()[0, 0].numpy(), kinds > 0)
    usual = BlockMask.from_kv_blocks(
        mask.kv_num_blocks, mask.kv_indices, mask.full_kv_num_blocks, mask.full_kv_indices, BLOCK_SIZE=4
    )
    for name in ("q_num_blocks", "q_indices", "full_q_num_blocks", "full_q_indices"):
        ours, theirs = getattr(mask, name), getattr(usual, name)
        assert ours.dtype == theirs.dtype and ours.is_contiguous() and torch.equal(ours, theirs)
    assert mask.shape == (1, 1, 64, 64) and mask.BLOCK_SIZE == (4, 4)


def test_the_mask_is_the_one_torch_makes_from_the_rule() -> None:
    """A row of six blocks of 8: ``create_block_mask`` tries every pair of tokens, we none."""
    segments = forest([19, 12, 7, 5], [-1, 0, 0, 2])
    for window in (None, 9):
        mask = mask_of(segments, window, 48, 8, CPU)
        usual = torch_flex.create_block_mask(mask.mask_mod, 1, 1, 48, 48, device="cpu", BLOCK_SIZE=8)
        for name in ("kv", "full_kv", "q", "full_q"):
            counts, theirs = getattr(mask, f"{name}_num_blocks"), getattr(usual, f"{name}_num_blocks")
            assert torch.equal(counts, theirs)
            for row, count in enumerate(counts[0, 0].tolist()):
                ours = getattr(mask, f"{name}_indices")[0, 0, row, :count]
                assert torch.equal(ours, getattr(usual, f"{name}_indices")[0, 0, row, :count])


@pytest.mark.parametrize("name", ["one_token", "five_answers", "deep_tree", "interleaved_trees"])
def test_equals_dense_forward_and_backward(name: str, eager: FilledAttention) -> None:
    """Windows, softcaps and sinks, grouped heads, values of another width; 1e-10 is float64 rounding."""
    segments = FORESTS[name]
    for window, softcap, sinks in ((None, 2.0, False), (None, None, True), (4, 2.0, True)):
        hq, hkv, dv = (4, 2, 8) if sinks else (3, 3, 5)
        assert_equals_dense(
            segments, draw(segments, hq, hkv, dv=dv, sinks=sinks), Rule(0.4, window, softcap), eager
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_forward_keeps_the_dtype(dtype: torch.dtype, eager: FilledAttention) -> None:
    """Sinks work on float32 log-sum-exps and leave half-precision outputs half."""
    segments = FORESTS["two_pairs"]
    query, key, value, sinks = (part.to(dtype) for part in draw(segments, sinks=True))
    found = flex_attention(query, key, value, sinks, segments, Rule(0.4), attend=eager)
    wanted = dense_attention(query, key, value, sinks, segments, Rule(0.4))
    assert found.dtype == dtype
    # weights and output are rounded to the dtype once each
    torch.testing.assert_close(found, wanted, rtol=0, atol=4 * torch.finfo(dtype).eps)


# the compiler looks at gradients of tensors in the middle, and hides the warning where warnings are no errors
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_equals_dense_as_the_compiler_sees_it(eager: FilledAttention) -> None:
    """Traced whole, forward and backward together, as for the GPU; only its kernels are not made."""
    segments = FORESTS["two_pairs"]
    traced = torch.compile(filled_attention, backend="aot_eager", dynamic=False, fullgraph=True)
    assert_equals_dense(segments, draw(segments, sinks=True), Rule(0.4, 6, 2.0), traced)


def test_sizes_are_two_in_every_octave() -> None:
    """128 times 1, 2, 3, 4, 6, 8, 12 …; a size never grows past half as much again."""
    sizes = sorted({filled_size(tokens) for tokens in range(1, 4097)})
    assert sizes == [128 * n for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)]
    for tokens in range(1, 5000):
        size = filled_size(tokens)
        assert tokens <= size and (size <= 1.5 * tokens + 128)
        assert filled_size(size) == size


def test_twenty_packings_are_one_compilation() -> None:
    """Other forests, windows and lengths within a size change tensors only: one graph, never a second."""
    graphs: list[int] = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(1)
        return graph.forward

    compiled = torch.compile(filled_attention, backend=count, dynamic=False, fullgraph=True)
    numbers = np.random.default_rng(0)
    with torch.no_grad():
        for turn in range(20):
            segments = forest(numbers.integers(10, 40, 9).tolist(), [-1, 0, 0, -1, 3, 4, 3, -1, 7])
            query, key, value = (part.float() for part in draw(segments))
            rule = Rule(0.4, 30 if turn % 2 else None)
            found = flex_attention(query, key, value, None, segments, rule, attend=compiled)
            wanted = dense_attention(query, key, value, None, segments, rule)
            # float32 sums of a few hundred terms
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert len(graphs) <= len({filled_size(n) for n in range(90, 360)}) == 3


def test_every_kind_of_problem_has_a_code_object_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch gives up on a code object after eight compilations; here eleven softcaps are served in turn."""
    made: list[Any] = []

    def remember(function: Any, **kwargs: Any) -> Any:
        assert kwargs == {"dynamic": False, "fullgraph": True}
        made.append(function)
        return function

    monkeypatch.setattr(torch, "compile", remember)
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    flex._compiled.cache_clear()
    segments = FORESTS["pair"]
    query, key, value = (part.detach() for part in draw(segments))
    for _ in range(2):
        for softcap in range(1, 12):
            given = (query, key, value, None, segments, Rule(0.4, None, float(softcap)))
            assert torch.equal(flex_attention(*given), flex_attention(*given, attend=filled_attention))
    flex._compiled.cache_clear()
    assert len(made) == len({function.__code__ for function in made}) == 11
    assert filled_attention.__code__ not in [function.__code__ for function in made]


def test_the_rule_of_a_small_row_is_that_of_the_docstring() -> None:
    """``P P C R R`` under a window of 3."""
    rule = token_rule(forest([2, 1, 2], [-1, 0, 0]), 3, 5)
    assert rule.order.tolist() == [0, 1, 2, 3, 4]
    assert rule.last.tolist() == [4, 4, 2, 4, 4]
    assert rule.place.tolist() == [0, 1, 2, 2, 3]
    assert rule.reach.tolist() == [2, 3, 4, 4, 5]
    assert rule.visible()[4].nonzero()[0].tolist() == [1, 3, 4]
