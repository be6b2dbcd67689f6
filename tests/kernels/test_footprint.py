"""What kernels say of their memory is what they are seen to take, counted tensor by tensor."""

from __future__ import annotations

import pytest
import torch
from measured import held
from torch import Tensor

from prefopt.kernels import token_logps, tree_attention
from prefopt.kernels.footprint import Footprint
from prefopt.kernels.linear_logp import chunked, plans
from prefopt.kernels.linear_logp.footprint import HeadCall
from prefopt.kernels.linear_logp.spec import HeadInputs, Spec
from prefopt.kernels.prefix_attention.choice import footprint_of
from prefopt.kernels.prefix_attention.footprint import AttentionCall
from prefopt.kernels.prefix_attention.spec import Rule
from prefopt.kernels.prefix_attention.varlen import varlen_attention
from prefopt.kernels.token_kl import token_kl
from prefopt.kernels.token_kl.footprint import kl_footprint, with_kl
from prefopt.memory.sample import Sample

SINGLE, HALF = torch.float32, torch.bfloat16
ROWS, TOKENS, VOCAB, WIDTH = 300, 350, 2000, 64


def head_tensors(dtypes: tuple[torch.dtype, torch.dtype], trains: bool) -> tuple[Tensor, ...]:
    hidden = torch.randn(TOKENS, WIDTH, dtype=dtypes[0], requires_grad=True)
    weight = torch.randn(VOCAB, WIDTH, dtype=dtypes[1], requires_grad=trains)
    return hidden, weight, torch.randint(TOKENS, (ROWS,)), torch.randint(VOCAB, (ROWS,))


def head_call(dtypes: tuple[torch.dtype, torch.dtype], trains: bool, **settings: object) -> HeadCall:
    product = torch.promote_types(*dtypes)
    return HeadCall(ROWS, TOKENS, VOCAB, WIDTH, *dtypes, product, True, trains, **settings)  # type: ignore[arg-type]


def assert_close(said: Footprint, seen: Footprint | object, rtol: float) -> None:
    for name in ("forward", "kept", "backward"):
        most = max(getattr(seen, "backward"), getattr(seen, "forward"))  # noqa: B009
        gap = abs(getattr(said, name) - getattr(seen, name))
        assert gap <= rtol * most, f"{name}: said {getattr(said, name)}, seen {getattr(seen, name)}"


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give 300 rows five chunks of 64."""
    monkeypatch.setattr(chunked, "TILE_BYTES", {"cpu": 64 * VOCAB * 4, "cuda": 1})
    monkeypatch.setattr(chunked, "MIN_ROWS", 16)


@pytest.mark.parametrize("dtypes", [(SINGLE, SINGLE), (HALF, HALF), (HALF, SINGLE)], ids=str)
@pytest.mark.parametrize(
    ("trains", "cache", "mode"),
    [(True, 1 << 40, "cached"), (True, 0, "recompute"), (False, 0, "frozen")],
    ids=["cached", "recompute", "frozen"],
)
@pytest.mark.parametrize(
    ("stats", "softcap"), [((), None), ((), 5.0), (("log_sum_p2", "entropy"), None)], ids=str
)
@pytest.mark.usefixtures("small_chunks")
def test_a_chunked_head_takes_what_it_says(
    dtypes: tuple[torch.dtype, torch.dtype],
    trains: bool,
    cache: int,
    mode: str,
    stats: tuple[str, ...],
    softcap: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chunked, "CHUNKED_CACHE_BYTES", {"cpu": cache, "cuda": cache})
    hidden, weight, rows, targets = head_tensors(dtypes, trains)

    def score() -> Tensor:
        found = token_logps(hidden, weight, targets, rows=rows, stats=stats, softcap=softcap, impl="chunked")
        assert found.mode == (mode if not stats or trains else "recompute")
        return found.logps.sum() + sum(getattr(found, name).sum() for name in stats)

    seen = held(score, (hidden, weight, rows, targets))
    call = head_call(dtypes, trains, stats=stats, softcap=softcap, device="cpu")
    # numbers per row that pass by are not counted: 300 rows of 4 bytes a few times over, in some MB
    assert_close(call.footprint("chunked"), seen, rtol=0.02)


@pytest.mark.parametrize("dtypes", [(SINGLE, SINGLE), (HALF, HALF), (HALF, SINGLE)], ids=str)
@pytest.mark.parametrize(
    ("trains", "cache", "mode"),
    [(True, 1 << 40, "cached"), (True, 0, "recompute"), (False, 0, "frozen")],
    ids=["cached", "recompute", "frozen"],
)
@pytest.mark.parametrize("chunk_rows", [64, 600])
def test_a_divergence_takes_what_it_says(
    dtypes: tuple[torch.dtype, torch.dtype],
    trains: bool,
    cache: int,
    mode: str,
    chunk_rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chunked, "TILE_BYTES", {"cpu": 4 * chunk_rows * VOCAB * 4, "cuda": 1})
    monkeypatch.setattr(chunked, "MIN_ROWS", 16)
    monkeypatch.setattr(chunked, "CHUNKED_CACHE_BYTES", {"cpu": cache, "cuda": cache})
    hidden, weight, rows, _ = head_tensors(dtypes, trains)
    reference = torch.randn(ROWS, WIDTH, dtype=dtypes[0]), torch.randn(VOCAB, WIDTH, dtype=dtypes[1])

    def diverge() -> Tensor:
        return token_kl(hidden, weight, *reference, rows=rows).sum()

    call = head_call(dtypes, trains, device="cpu")
    assert call.mode("chunked") == mode
    # operands widened for the products are let go a little earlier than counted
    assert_close(kl_footprint(call), held(diverge, (hidden, weight, rows, *reference)), rtol=0.1)


def test_a_head_that_also_diverges_holds_both_and_goes_back_through_one_after_the_other() -> None:
    """Scored 10 of 20 tokens of width 4, 5 logits in float32: gradients of 320 and 80 bytes wait."""
    call = HeadCall(10, 20, 5, 4, SINGLE, SINGLE, SINGLE, True, True, device="cpu")
    alone, kl = call.footprint("chunked"), kl_footprint(call)
    both = with_kl(alone, call)
    assert both.kept == alone.kept + kl.kept
    assert both.forward == max(alone.forward, alone.kept + kl.forward)
    assert both.backward == max(alone.kept + kl.backward, 400 + alone.backward)


@pytest.mark.parametrize("stats", [(), ("entropy",), ("is_top1",), ("log_sum_p2",), ("mean_logit",)], ids=str)
@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("cache", [0, 1 << 40])
def test_the_mode_is_the_one_that_the_op_takes(
    stats: tuple[str, ...], trains: bool, cache: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked, "CHUNKED_CACHE_BYTES", {"cpu": cache, "cuda": cache})
    hidden, weight, rows, targets = head_tensors((SINGLE, SINGLE), trains)
    found = token_logps(hidden, weight, targets, rows=rows, stats=stats, impl="chunked")
    assert head_call((SINGLE, SINGLE), trains, stats=stats, device="cpu").mode("chunked") == found.mode
    with torch.no_grad():
        found = token_logps(hidden, weight, targets, rows=rows, stats=stats, impl="chunked")
    assert found.mode == "no_grad"


@pytest.mark.parametrize(
    ("trains", "cache", "mode"),
    [(True, 1 << 40, "cached"), (True, 0, "recompute"), (False, 0, "frozen")],
    ids=["cached", "recompute", "frozen"],
)
@pytest.mark.parametrize("dtype", [SINGLE, HALF], ids=str)
@pytest.mark.parametrize("chunk", [1 << 40, 1 << 20], ids=["one chunk", "chunks"])
def test_a_fused_head_takes_what_it_says(
    trains: bool, cache: int, mode: str, dtype: torch.dtype, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every kernel and product is stubbed, so that what is left is the memory laid out for them."""
    pytest.importorskip("triton", reason="needs triton")
    from prefopt.kernels.linear_logp import fused_op, fused_passes

    def multiply(
        a: Tensor, b: Tensor, dtype: torch.dtype, out: Tensor | None = None, add: bool = False
    ) -> Tensor:
        return a.new_empty((a.shape[0], b.shape[1]), dtype=torch.float32) if out is None else out

    def collect(values: Tensor, factors: object, rows: object, count: int, dtype: torch.dtype) -> Tensor:
        return values.new_empty((count, values.shape[1]), dtype=dtype)

    plan = plans.plan_for(plans.LogpProblem((9, 0), dtype, ROWS, VOCAB, WIDTH))
    for name, stub in (
        ("score_rows", lambda *_: None),
        ("differentiate", lambda *_: None),
        ("multiply", multiply),
        ("collect", collect),
        ("project", lambda *_, **__: None),
    ):
        monkeypatch.setattr(fused_passes, name, stub)
    monkeypatch.setattr(fused_op, "tuned_plan", lambda problem, timed: plan)
    # on a GPU every dtype of the weight has a product that writes it at once
    monkeypatch.setattr(fused_passes.BackwardPass, "_write", lambda *_: None)
    for module in (fused_passes, plans):
        monkeypatch.setattr(module, "CHUNK_BYTES", chunk)
    for module in (fused_op, plans):
        monkeypatch.setattr(module, "FUSED_CACHE_BYTES", cache)
    hidden, weight, rows, targets = head_tensors((dtype, dtype), trains)
    inputs = HeadInputs(hidden, weight, None, None, None, rows)
    call = head_call((dtype, dtype), trains)
    assert fused_op.fused_mode(inputs, (), "auto", None) == call.mode("fused") == mode
    spec = Spec(scale=1.0, softcap=None, stats=(), mode=mode)

    def score() -> Tensor:
        return fused_op.fused_logps(inputs, targets, spec)[0].sum()

    seen = held(score, (hidden, weight, rows, targets))
    # numbers per row, of which the kernel reads nine, are some per cent of heads as small as this
    assert_close(call.footprint("fused"), seen, rtol=0.06)


SHORT = Sample.uniform(96, (48, 64)).twice().twice()
LONG = Sample.uniform(900, (300, 200)).twice()


@pytest.mark.parametrize("dtype", [SINGLE, HALF], ids=str)
@pytest.mark.parametrize("sample", [SHORT, LONG], ids=["short", "long"])
@pytest.mark.parametrize(
    ("key_heads", "window", "softcap"),
    [(2, None, None), (4, None, None), (2, 64, None), (2, None, 5.0)],
    ids=str,
)
def test_attention_by_segments_takes_what_it_says(
    dtype: torch.dtype, sample: Sample, key_heads: int, window: int | None, softcap: float | None
) -> None:
    heads, width, tokens = 4, 32, sample.num_tokens
    query, key, value = (
        torch.randn(1, count, tokens, width, dtype=dtype, requires_grad=True)
        for count in (heads, key_heads, key_heads)
    )

    def attend() -> Tensor:
        out = tree_attention(
            query, key, value, sample.segments, scaling=1.0, window=window, softcap=softcap, impl="segments"
        )
        return (out * out).sum() / 2

    attend()  # masks are made once for all layers of a batch, and are not counted
    call = AttentionCall(
        sample.segments, heads, key_heads, width, width, dtype.itemsize, window, softcap is not None, "cpu"
    )
    said = footprint_of("segments", call)
    out = tokens * heads * width * dtype.itemsize  # kept twice: by attention and by the square
    given = out + 2 * tokens * key_heads * width * dtype.itemsize
    seen = held(attend, (query, key, value))
    around = Footprint(said.forward + out, said.kept + out, said.backward + 2 * out + given)
    # operands of single calls, which the plan only bounds, are up to a tenth of so short a row
    assert_close(around, seen, rtol=0.12)


def test_varlen_copies_a_prompt_for_every_answer_but_the_first() -> None:
    """Row of 512 + 256 + 256 tokens, 4 key heads of 64 in bfloat16, 8 heads of queries.

    Keys: 768 of the first sequence, 512 + 256 of the second. Kept: 8 * 1024 * 4. Copies of keys and
    values: 1536 * 4 * 128 * 2. Backward: those twice, the same spread over 8 heads, and the sums of the
    queries' gradients, (1024 + 2 * 128) * 8 * (64 + 1) * 4.
    """
    said = footprint_of("varlen", AttentionCall(Sample.uniform().segments, 8, 4, 64, 64, 2))
    kept, copies = 32768, 1572864
    assert said == (kept + copies, kept, kept + 2 * copies + 2 * copies + 2662400)


class _Flash:
    """Lays out what flash attention returns, and computes nothing."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        return torch.empty_like(q), q.new_zeros((q.shape[1], q.shape[0]), dtype=SINGLE)

    def backward(self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[Tensor, ...]:
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def test_varlen_lays_out_what_it_says_around_flash_attention() -> None:
    heads, key_heads, width, tokens = 8, 4, 64, LONG.num_tokens
    query, key, value = (
        torch.zeros(1, count, tokens, width, dtype=HALF, requires_grad=True)
        for count in (heads, key_heads, key_heads)
    )

    def attend() -> Tensor:
        out = varlen_attention(query, key, value, None, LONG.segments, Rule(1.0), op=_Flash())  # type: ignore[arg-type]
        return (out * out).sum() / 2

    attend()  # the gather is made once for all layers of a batch, and is not counted
    call = AttentionCall(LONG.segments, heads, key_heads, width, width, 2)
    said, keys = footprint_of("varlen", call), call.keys_read()
    assert keys == 2 * (900 + 300 + 900 + 200)
    inside = 4 * (tokens + 128 * 4) * heads * (width + 1) + 2 * keys * heads * width * 2
    out = tokens * heads * width * 2
    given = out + 2 * tokens * key_heads * width * 2
    around = Footprint(said.forward + out, said.kept + out, said.backward - inside + 2 * out + given)
    seen = held(attend, (query, key, value))
    # gradients of keys and values are summed one after the other, so one of them is not there yet
    assert_close(around, seen, rtol=0.07)


def test_varlen_copies_nothing_where_nothing_is_shared() -> None:
    said = footprint_of("varlen", AttentionCall(Sample.uniform(512, (256,)).segments, 8, 8, 64, 64, 2))
    assert said.forward == said.kept == 8 * 768 * 4
