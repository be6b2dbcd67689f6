"""Triton kernels of the log-prob op: logits live in registers, statistics and gradients leave.

The README beside this file derives what is computed. Logits are held in units of ln 2, so that every
exponential is one exp2. Only this file knows Triton: ``launch`` starts what is here, ``fused_op`` decides when.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

from collections.abc import Callable

import triton
import triton.language as tl
from torch import Tensor
from triton.testing import do_bench
from triton.tools.tensor_descriptor import TensorDescriptor

from prefopt.kernels.linear_logp.spec import LOG_ZERO

LN2_ = tl.constexpr(0.6931471805599453)
LOG_ZERO_ = tl.constexpr(LOG_ZERO)
SMALLEST_ = tl.constexpr(2.0**-126)
LOWEST_ = tl.constexpr(-3.0e38)  # a maximum that any logit replaces; finite, so that 2^(-inf - LOWEST) is 0

MAX_, SUM_, LABEL_, SHIFT_, SQUARES_, MEAN_ = (tl.constexpr(field) for field in range(6))
NUM_FIELDS = 6
"""Partial results per row and split: the maximum, sums of e, d e and e^2 with d = z - max and e = 2^d, z of
the label, sum of z."""

NORM_, BASE_, LOGP_, AT_LABEL_, P_LABEL_, ENTROPY_GRAD_, ENTROPY_, P2_, FLAT_ = (
    tl.constexpr(field) for field in range(9)
)
ROW_FIELDS = ("norm", "base", "logp", "at_label", "p_label", "entropy_grad", "entropy", "p2", "flat")
"""What the gradient kernel reads per row, in order; see ``Rows``."""

COUNTS = ("M", "n_m", "n_v", "n_s", "n_each", "s_keys")
"""Sizes that change from step to step: kernels must not be compiled again for each divisibility of them."""

DOT, TILE, EXPS = 0, 1, 2
"""Where the gradient kernel gets its logits: a product, a stored tile, or stored exponentials."""
DOT_, TILE_, EXPS_ = tl.constexpr(DOT), tl.constexpr(TILE), tl.constexpr(EXPS)


@triton.jit
def _long(i):
    """Return a 64-bit copy of an index or size; sizes of one arrive as constants, loop indices as numbers."""
    return tl.zeros([], tl.int64) + i


@triton.jit
def _place(i, n_m, n_v, GROUP: tl.constexpr):
    """Return the row block and the column of block i: GROUP row blocks cross the vocabulary side by side."""
    i_first = i // (GROUP * n_v) * GROUP
    n_side = tl.minimum(n_m - i_first, GROUP)
    i_local = i % (GROUP * n_v)
    return i_first + i_local % n_side, i_local // n_side


@triton.jit
def _narrow(b, kind: tl.constexpr, EMULATE: tl.constexpr):
    """Round a float32 block to the nearest of a narrower kind; the interpreter would cut bfloat16 off."""
    if EMULATE and kind == tl.bfloat16:
        b_bits = b.to(tl.int32, bitcast=True)
        b_bits += 0x7FFF + ((b_bits >> 16) & 1)
        b = (b_bits & -0x10000).to(tl.float32, bitcast=True)
    return b.to(kind)


@triton.jit
def _dot(
    b_z, x, w, i_x, i_w, o_x, o_w, m_m, s_wd, D,
    BD: tl.constexpr, TMA: tl.constexpr, EVEN: tl.constexpr, EMULATE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return b_z + x @ w.T of one block; o_x [BM] and o_w [BV] are the offsets of its rows."""
    o_d = tl.arange(0, BD)
    if not TMA:
        p_x = x + o_x[:, None] + o_d[None, :]
        p_w = w + o_w[:, None] + (o_d * s_wd)[None, :]
    for i_d in range(tl.cdiv(D, BD)):
        if TMA:
            b_x = x.load([i_x, i_d * BD])
            b_w = w.load([i_w, i_d * BD])
        elif EVEN:
            b_x = tl.load(p_x, mask=m_m[:, None], other=0.0)
            b_w = tl.load(p_w)
        else:
            m_d = o_d < D - i_d * BD
            b_x = tl.load(p_x, mask=m_m[:, None] & m_d[None, :], other=0.0)
            b_w = tl.load(p_w, mask=m_d[None, :], other=0.0)
        if EMULATE:
            b_x, b_w = b_x.to(tl.float32), b_w.to(tl.float32)
        b_z = tl.dot(b_x, tl.trans(b_w), b_z, input_precision=PRECISION)
        if not TMA:
            p_x += BD
            p_w += BD * s_wd
    return b_z


@triton.jit
def _product(
    x, w, x2, w2, i_m, i_v, o_m, m_m, o_v, V, D, R, s_xm, s_wv, s_wd, s_x2m, s_w2v, s_w2r,
    BM: tl.constexpr, BV: tl.constexpr, BD: tl.constexpr, BR: tl.constexpr, HAS_LORA: tl.constexpr,
    TMA: tl.constexpr, EVEN: tl.constexpr, EMULATE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the raw products [BM, BV] of row block i_m and vocabulary block i_v, low-rank term included."""
    o_w = tl.minimum(o_v, V - 1)
    i_x, i_w = i_m * BM, i_v * BV
    b_z = tl.zeros([BM, BV], tl.float32)
    b_z = _dot(
        b_z, x, w, i_x, i_w, o_m * s_xm, o_w * s_wv, m_m, s_wd, D, BD, TMA, EVEN, EMULATE, PRECISION
    )  # fmt: skip
    if HAS_LORA:
        b_z = _dot(
            b_z, x2, w2, i_x, i_w, o_m * s_x2m, o_w * s_w2v, m_m, s_w2r, R, BR, False, False, EMULATE, PRECISION
        )  # fmt: skip
    return b_z


@triton.jit
def _final(b_z, bias, o_v, V, scale2, cap2, HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr):
    """Turn raw products into final logits over ln 2: bias, scale, softcap; -inf past the vocabulary."""
    m_v = o_v < V
    if HAS_BIAS:
        b_z += tl.load(bias + o_v, mask=m_v, other=0.0).to(tl.float32)[None, :]
    b_z *= scale2
    if HAS_CAP:
        # scale2 holds scale / softcap * 2 log2(e): tanh(y) from 2^-|2 y log2 e|, which cannot overflow
        b_t = tl.exp2(-tl.abs(b_z))
        b_t = (1.0 - b_t) / (1.0 + b_t)
        b_z = cap2 * tl.where(b_z < 0, -b_t, b_t)
    return tl.where(m_v[None, :], b_z, float("-inf"))


@triton.jit(do_not_specialize=COUNTS)
def stats_kernel(
    x, w, bias, x2, w2, targets, tile, exps, keys, partials,
    M, V, D, R, s_xm, s_wv, s_wd, s_x2m, s_w2v, s_w2r, s_tile, s_exps, s_keys, n_m, n_s, n_each, scale2, cap2,
    BM: tl.constexpr, BV: tl.constexpr, BD: tl.constexpr, BR: tl.constexpr, GROUP: tl.constexpr,
    FROM_TILE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, HAS_LORA: tl.constexpr,
    KEEP_EXPS: tl.constexpr, ENTROPY: tl.constexpr, SQUARES: tl.constexpr, MEAN: tl.constexpr,
    TMA: tl.constexpr, EVEN: tl.constexpr, EMULATE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Fold BM rows of logits over one split of the vocabulary into ``partials`` [fields, splits, M]."""
    i_m, i_s = _place(tl.program_id(0), n_m, n_s, GROUP)
    o_m = _long(i_m) * BM + tl.arange(0, BM)
    m_m = o_m < M
    b_target = tl.load(targets + o_m, mask=m_m, other=0)
    b_max = tl.full([BM], LOWEST_, tl.float32)
    b_sum = tl.zeros([BM], tl.float32)
    # a target outside the vocabulary must not pass for a number
    b_label = tl.where((b_target >= 0) & (b_target < V), 0.0, float("nan"))
    b_shift = tl.zeros([BM], tl.float32)
    b_squares = tl.zeros([BM], tl.float32)
    b_mean = tl.zeros([BM], tl.float32)
    n_v = tl.cdiv(V, BV)
    # flattened, so that the next block's loads are under way while this one's statistics are worked out
    for i_v in tl.range(i_s * n_each, tl.minimum((i_s + 1) * n_each, n_v), flatten=True):
        o_v = _long(i_v) * BV + tl.arange(0, BV)
        if FROM_TILE:
            b_z = tl.load(
                tile + o_m[:, None] * s_tile + o_v[None, :], mask=m_m[:, None] & (o_v < V)[None, :], other=0.0
            )
        else:
            b_z = _product(
                x, w, x2, w2, i_m, i_v, o_m, m_m, o_v, V, D, R, s_xm, s_wv, s_wd, s_x2m, s_w2v, s_w2r,
                BM, BV, BD, BR, HAS_LORA, TMA, EVEN, EMULATE, PRECISION,
            )  # fmt: skip
        b_z = _final(b_z, bias, o_v, V, scale2, cap2, HAS_BIAS, HAS_CAP)
        b_label += tl.sum(tl.where(o_v[None, :] == b_target[:, None], b_z, 0.0), 1)
        if MEAN:
            b_mean += tl.sum(tl.where((o_v < V)[None, :], b_z, 0.0), 1)
        b_top = tl.maximum(b_max, tl.max(b_z, 1))
        b_step = b_max - b_top
        b_decay = tl.exp2(b_step)
        b_z -= b_top[:, None]
        b_e = tl.exp2(b_z)
        if ENTROPY:
            b_new = tl.sum(b_e * tl.maximum(b_z, LOG_ZERO_), 1)
            b_shift = (b_shift + tl.maximum(b_step, LOG_ZERO_) * b_sum) * b_decay + b_new
        if SQUARES:
            b_squares = b_squares * b_decay * b_decay + tl.sum(b_e * b_e, 1)
        b_sum = b_sum * b_decay + tl.sum(b_e, 1)
        b_max = b_top
        if KEEP_EXPS:
            m_e = m_m[:, None] & (o_v < V)[None, :]
            tl.store(
                exps + o_m[:, None] * s_exps + o_v[None, :],
                _narrow(b_e, exps.dtype.element_ty, EMULATE),
                mask=m_e,
            )
            tl.store(keys + _long(i_v) * s_keys + o_m, b_top, mask=m_m)

    p_out = partials + _long(i_s) * M + o_m
    n_field = _long(n_s) * M
    tl.store(p_out + n_field * MAX_, b_max, mask=m_m)
    tl.store(p_out + n_field * SUM_, b_sum, mask=m_m)
    tl.store(p_out + n_field * LABEL_, b_label, mask=m_m)
    if ENTROPY:
        tl.store(p_out + n_field * SHIFT_, b_shift, mask=m_m)
    if SQUARES:
        tl.store(p_out + n_field * SQUARES_, b_squares, mask=m_m)
    if MEAN:
        tl.store(p_out + n_field * MEAN_, b_mean, mask=m_m)


@triton.jit(do_not_specialize=COUNTS)
def merge_kernel(
    partials, logps, norm, logsumexp, entropy, log_sum_p2, is_top1, mean_logit, M, V, n_s,
    BM: tl.constexpr, LOGSUMEXP: tl.constexpr, ENTROPY: tl.constexpr, SQUARES: tl.constexpr,
    TOP1: tl.constexpr, MEAN: tl.constexpr,
):  # fmt: skip
    """Add the splits up, first to last, and turn them into statistics in nats."""
    o_m = _long(tl.program_id(0)) * BM + tl.arange(0, BM)
    m_m = o_m < M
    n_field = _long(n_s) * M
    b_max = tl.full([BM], LOWEST_, tl.float32)
    b_sum = tl.zeros([BM], tl.float32)
    b_label = tl.zeros([BM], tl.float32)
    b_shift = tl.zeros([BM], tl.float32)
    b_squares = tl.zeros([BM], tl.float32)
    b_mean = tl.zeros([BM], tl.float32)
    for i_s in range(n_s):
        p_in = partials + _long(i_s) * M + o_m
        b_top_s = tl.load(p_in + n_field * MAX_, mask=m_m, other=0.0)
        b_sum_s = tl.load(p_in + n_field * SUM_, mask=m_m, other=1.0)
        b_label += tl.load(p_in + n_field * LABEL_, mask=m_m, other=0.0)
        b_top = tl.maximum(b_max, b_top_s)
        b_step, b_step_s = b_max - b_top, b_top_s - b_top
        b_decay, b_decay_s = tl.exp2(b_step), tl.exp2(b_step_s)
        if ENTROPY:
            b_shift_s = tl.load(p_in + n_field * SHIFT_, mask=m_m, other=0.0)
            b_shift = (b_shift + tl.maximum(b_step, LOG_ZERO_) * b_sum) * b_decay
            b_shift += (b_shift_s + tl.maximum(b_step_s, LOG_ZERO_) * b_sum_s) * b_decay_s
        if SQUARES:
            b_squares_s = tl.load(p_in + n_field * SQUARES_, mask=m_m, other=1.0)
            b_squares = b_squares * b_decay * b_decay + b_squares_s * b_decay_s * b_decay_s
        if MEAN:
            b_mean += tl.load(p_in + n_field * MEAN_, mask=m_m, other=0.0)
        b_sum = b_sum * b_decay + b_sum_s * b_decay_s
        b_max = b_top
    b_log_sum = tl.log2(b_sum)
    tl.store(logps + o_m, (b_label - b_max - b_log_sum) * LN2_, mask=m_m)
    tl.store(norm + o_m, b_max + b_log_sum, mask=m_m)
    if LOGSUMEXP:
        tl.store(logsumexp + o_m, (b_max + b_log_sum) * LN2_, mask=m_m)
    if ENTROPY:
        tl.store(entropy + o_m, (b_log_sum - b_shift / b_sum) * LN2_, mask=m_m)
    if SQUARES:
        tl.store(log_sum_p2 + o_m, (tl.log2(b_squares) - 2.0 * b_log_sum) * LN2_, mask=m_m)
    if TOP1:
        tl.store(is_top1 + o_m, tl.where(b_label >= b_max, 1.0, 0.0), mask=m_m)
    if MEAN:
        tl.store(mean_logit + o_m, b_mean / V * LN2_, mask=m_m)


@triton.jit(do_not_specialize=COUNTS)
def gradient_kernel(
    x, w, bias, x2, w2, targets, source, keys, row_values, dz,
    M, V, D, R, s_xm, s_wv, s_wd, s_x2m, s_w2v, s_w2r, s_source, s_dz, s_keys, n_m, n_v, scale2, cap2,
    BM: tl.constexpr, BV: tl.constexpr, BD: tl.constexpr, BR: tl.constexpr, GROUP: tl.constexpr,
    BK: tl.constexpr, FROM: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr,
    HAS_LORA: tl.constexpr, LOGP: tl.constexpr, ENTROPY: tl.constexpr, SQUARES: tl.constexpr,
    MEAN: tl.constexpr, TMA: tl.constexpr, EVEN: tl.constexpr, EMULATE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write one block of the loss's gradient by the raw products, rounded once to the dtype of ``dz``."""
    for i in tl.range(tl.program_id(0), n_m * n_v, tl.num_programs(0), flatten=True):
        i_m, i_v = _place(i, n_m, n_v, GROUP)
        o_m = _long(i_m) * BM + tl.arange(0, BM)
        o_v = _long(i_v) * BV + tl.arange(0, BV)
        m_m = o_m < M
        m_z = m_m[:, None] & (o_v < V)[None, :]
        p_row = row_values + o_m
        b_norm = tl.load(p_row + M * NORM_, mask=m_m, other=0.0)
        b_target = tl.load(targets + o_m, mask=m_m, other=0)
        m_label = o_v[None, :] == b_target[:, None]
        if FROM == EXPS_:
            b_key = tl.load(keys + _long(i_v * BV // BK) * s_keys + o_m, mask=m_m, other=0.0)
            b_e = tl.load(source + o_m[:, None] * s_source + o_v[None, :], mask=m_z, other=0.0).to(tl.float32)
            b_p = b_e * tl.exp2(b_key - b_norm)[:, None]
            # the stored exponential is rounded, the label's own log-prob is not
            b_p_label = tl.load(p_row + M * P_LABEL_, mask=m_m, other=0.0)
            b_p = tl.where(m_label, b_p_label[:, None], b_p)
            if ENTROPY or HAS_CAP:
                b_z = tl.log2(tl.maximum(b_e, SMALLEST_)) + b_key[:, None]
        else:
            if FROM == TILE_:
                b_z = tl.load(source + o_m[:, None] * s_source + o_v[None, :], mask=m_z, other=0.0)
            else:
                b_z = _product(
                    x, w, x2, w2, i_m, i_v, o_m, m_m, o_v, V, D, R, s_xm, s_wv, s_wd, s_x2m, s_w2v, s_w2r,
                    BM, BV, BD, BR, HAS_LORA, TMA, EVEN, EMULATE, PRECISION,
                )  # fmt: skip
            b_z = _final(b_z, bias, o_v, V, scale2, cap2, HAS_BIAS, HAS_CAP)
            b_p = tl.exp2(b_z - b_norm[:, None])

        b_slope = tl.load(p_row + M * BASE_, mask=m_m, other=0.0)[:, None]
        if SQUARES:
            b_slope += b_p * tl.load(p_row + M * P2_, mask=m_m, other=0.0)[:, None]
        if ENTROPY:
            b_grad = tl.load(p_row + M * ENTROPY_GRAD_, mask=m_m, other=0.0)
            b_entropy = tl.load(p_row + M * ENTROPY_, mask=m_m, other=0.0)
            b_log_p = tl.maximum((b_z - b_norm[:, None]) * LN2_, LOG_ZERO_)
            b_slope -= b_grad[:, None] * (b_log_p + b_entropy[:, None])
        b_dz = b_p * b_slope
        if LOGP:
            b_logp = tl.load(p_row + M * LOGP_, mask=m_m, other=0.0)
            b_at_label = tl.load(p_row + M * AT_LABEL_, mask=m_m, other=0.0)
            b_dz += tl.where(m_label, b_at_label[:, None], -b_p * b_logp[:, None])
        if MEAN:
            b_dz += tl.load(p_row + M * FLAT_, mask=m_m, other=0.0)[:, None]
        if HAS_CAP:
            b_tanh = tl.maximum(b_z / cap2, -1.0)
            b_dz *= 1.0 - b_tanh * b_tanh
        tl.store(
            dz + o_m[:, None] * s_dz + o_v[None, :], _narrow(b_dz, dz.dtype.element_ty, EMULATE), mask=m_z
        )


@triton.jit
def collect_kernel(
    values, factors, order, first, last, out, D, HAS_FACTORS: tl.constexpr, BD: tl.constexpr, EMULATE: tl.constexpr
):  # fmt: skip
    """Add up, in one fixed order, the gradient of all scored rows that came from one hidden row."""
    i_n = _long(tl.program_id(0))
    o_d = tl.program_id(1) * BD + tl.arange(0, BD)
    m_d = o_d < D
    b_sum = tl.zeros([BD], tl.float32)
    for i in range(tl.load(first + i_n), tl.load(last + i_n)):
        i_m = tl.load(order + i)
        b_value = tl.load(values + i_m * D + o_d, mask=m_d, other=0.0)
        if HAS_FACTORS:
            b_value *= tl.load(factors + i_m)
        b_sum += b_value
    tl.store(out + i_n * D + o_d, _narrow(b_sum, out.dtype.element_ty, EMULATE), mask=m_d)


INTERPRETING = not isinstance(stats_kernel, triton.runtime.JITFunction)
"""True under TRITON_INTERPRET=1, where the kernels run on the CPU."""


def described(matrix: Tensor, rows: int, columns: int) -> object:
    """Return what the copy engine needs to load blocks of a matrix, zeros beyond its edges."""
    return TensorDescriptor.from_tensor(matrix, [rows, columns])


def milliseconds(run: Callable[[], None]) -> float:
    """Return the median time on the GPU of many runs."""
    return float(do_bench(run, return_mode="median"))
