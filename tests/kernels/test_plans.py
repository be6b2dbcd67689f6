"""The table of plans for the fused log-prob op, its re-tuning, and the choice of back-end."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prefopt.kernels import token_logps, which_impl
from prefopt.kernels.linear_logp import plans, tuning
from prefopt.kernels.linear_logp.plans import TABLE, LogpProblem, TilePlan, even_splits, plan_for

LLAMA = LogpProblem((9, 0), torch.bfloat16, 8192, 128256, 4096)


@pytest.mark.parametrize("row_blocks", [1, 2, 7, 64, 500])
@pytest.mark.parametrize("vocab_blocks", [1, 3, 501, 594])
@pytest.mark.parametrize("slots", [4, 132, 264])
def test_splits_cover_the_vocabulary_and_keep_the_chip_busy(
    row_blocks: int, vocab_blocks: int, slots: int
) -> None:
    """No split is empty, none is missing, and rounds of full chips cost within a quarter of the ideal."""
    splits, each = even_splits(row_blocks, vocab_blocks, slots)
    assert (splits - 1) * each < vocab_blocks <= splits * each
    rounds = math.ceil(row_blocks * splits / slots) * each
    if row_blocks * vocab_blocks >= 4 * slots:
        assert rounds <= 1.25 * row_blocks * vocab_blocks / slots
    assert splits <= max(1, math.ceil(4 * slots / row_blocks))


def test_a_llama_on_an_h200_is_split_in_eight() -> None:
    """64 row blocks times 501 blocks of tokens on 132 processors: 243 blocks each at best."""
    splits, each = even_splits(64, 501, 132)
    rounds = math.ceil(64 * splits / 132) * each
    assert rounds < 1.05 * 64 * 501 / 132
    assert splits <= 9


@pytest.mark.parametrize("plan", TABLE.values(), ids=TABLE)
def test_blocks_fit_the_kernels(plan: TilePlan) -> None:
    """Powers of two, products at least 16 wide, and keys of stored exponentials that blocks do not straddle."""
    for blocks in (plan.stats, plan.gradient, plan.fold):
        sizes = (blocks.rows, blocks.vocab, blocks.depth, blocks.warps)
        assert all(size & (size - 1) == 0 for size in sizes)
        assert blocks.depth >= 16
    assert max(plan.fold.vocab, plan.stats.vocab) % min(plan.fold.vocab, plan.stats.vocab) == 0


def test_plans_by_chip_and_precision() -> None:
    """Copy-engine loads from Hopper on, little shared memory on desktop cards, float32 by the library."""
    assert plan_for(LLAMA).stats.tma
    assert plan_for(replace(LLAMA, capability=(10, 0))).stats.tma
    assert not plan_for(replace(LLAMA, capability=(8, 0))).stats.tma
    assert plan_for(replace(LLAMA, capability=(8, 9))) == plan_for(replace(LLAMA, capability=(12, 0)))
    assert plan_for(replace(LLAMA, dtype=torch.float32)).forward == "tile"


def test_problems_of_similar_size_share_a_bucket() -> None:
    assert LLAMA.bucket() == "sm90 bfloat16 rows<=8192 vocab=128256 width=4096"
    assert replace(LLAMA, num_rows=4097).bucket() == LLAMA.bucket() != replace(LLAMA, num_rows=8193).bucket()
    assert replace(LLAMA, num_rows=1).bucket() == "sm90 bfloat16 rows<=1 vocab=128256 width=4096"
    assert replace(LLAMA, num_rows=20_000).bucket() == replace(LLAMA, num_rows=90_000).bucket()


def test_without_the_variable_nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(tuning.VARIABLE, raising=False)
    assert tuning.tuned_plan(LLAMA, lambda plan: pytest.fail("timed")) == plan_for(LLAMA)


def test_tuning_takes_the_fastest_and_remembers_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that likes tiles forward and 128-token blocks backward gets them, once, also for later runs."""
    file = tmp_path / "plans.json"
    monkeypatch.setenv(tuning.VARIABLE, str(file))
    timed: list[TilePlan] = []

    def clock(plan: TilePlan) -> float:
        timed.append(plan)
        return 10 - 3 * (plan.forward == "tile") - (plan.backward == "fused") * (plan.gradient.vocab == 128)

    best = tuning.tuned_plan(LLAMA, clock)
    assert (best.forward, best.backward, best.gradient.vocab) == ("tile", "fused", 128)
    assert len(timed) == 2 * (1 + len(plans.candidates(LLAMA)))
    tuning._read.cache_clear()  # as in another process
    assert tuning.tuned_plan(LLAMA, lambda plan: pytest.fail("timed again")) == best
    assert [path.name for path in tmp_path.iterdir()] == ["plans.json"]
    other = replace(LLAMA, vocab=151936)
    tuning.tuned_plan(other, clock)
    tuning._read.cache_clear()
    assert tuning.tuned_plan(LLAMA, lambda plan: pytest.fail("forgotten")) == best


def test_a_plan_that_cannot_be_kept_is_used_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(tuning.VARIABLE, str(tmp_path / "nowhere" / "plans.json"))
    assert tuning.tuned_plan(LLAMA, lambda plan: 1.0) is not None
    assert "the plan could not be kept (" in caplog.text


def test_auto_on_a_cpu_is_chunked_and_says_so() -> None:
    hidden, weight = torch.randn(3, 4), torch.randn(7, 4)
    result = token_logps(hidden, weight, torch.tensor([1, 2, 3]))
    assert which_impl(hidden, weight) == result.impl == "chunked"
    assert result.mode == "no_grad"
    assert token_logps(hidden, weight, torch.tensor([1, 2, 3]), impl="naive").impl == "naive"


class Wrapped(torch.Tensor):
    """Stand for a sharded tensor."""


def test_fused_names_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each obstacle is one line with the way out."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    hidden, weight = torch.randn(3, 4), torch.randn(7, 4)
    for h, w, words in (
        (hidden, weight, "needs a GPU but hidden is on cpu"),
        (hidden.double(), weight, "computes in half or single precision but hidden is torch.float64"),
        (hidden, weight.to(torch.int8), "but weight is torch.int8"),
        (hidden, weight.as_subclass(Wrapped), "needs a plain weight but got a Wrapped"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            which_impl(h, w, "fused")
        assert str(caught.value).endswith("Use impl='auto' or 'chunked'.")


def test_chunks_are_equal_and_round() -> None:
    """Room for 1,200 rows: 3,000 are three parts of 1,000, rounded up to 8 * 128; columns likewise to 49 * 1024."""
    pytest.importorskip("triton", reason="needs triton")
    from prefopt.kernels.linear_logp.fused_passes import _chunks

    rows = _chunks(3000, plans.CHUNK_BYTES // 1200, plans.ROW_MULTIPLE)
    assert rows == [(0, 1024), (1024, 2048), (2048, 3000)]
    columns = _chunks(150_000, plans.CHUNK_BYTES // 64_000, plans.VOCAB_MULTIPLE)
    assert columns == [(0, 50176), (50176, 100352), (100352, 150_000)]
    assert _chunks(0, 1, 1) == []
