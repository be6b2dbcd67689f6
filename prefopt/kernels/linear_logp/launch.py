"""Start the Triton kernels of the log-prob op: operands, grids and sizes; nothing is decided here."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prefopt.kernels.linear_logp.fused import (
    DOT,
    EXPS,
    INTERPRETING,
    NUM_FIELDS,
    ROW_FIELDS,
    TILE,
    collect_kernel,
    described,
    gradient_kernel,
    merge_kernel,
    stats_kernel,
)
from prefopt.kernels.linear_logp.plans import Blocks, even_splits

LOG2E = 1.4426950408889634
MERGE_ROWS = 128
COLLECT_COLUMNS = 256


@dataclass(frozen=True, slots=True)
class Head:
    """The operands of softcap(scale * (x @ w.T + x2 @ w2.T + bias)), all products in one dtype."""

    x: Tensor  # [M, D], rows contiguous
    w: Tensor  # [V, D]
    bias: Tensor | None  # [V]
    x2: Tensor | None  # [M, r], rows contiguous
    w2: Tensor | None  # [V, r]
    scale: float
    softcap: float | None

    def rows(self, low: int, high: int) -> Head:
        """Return the same head over rows [low, high)."""
        x2 = None if self.x2 is None else self.x2[low:high]
        return replace(self, x=self.x[low:high], x2=x2)

    def columns(self, low: int, high: int) -> Head:
        """Return the same head over the vocabulary [low, high)."""
        bias, w2 = (None if part is None else part[low:high] for part in (self.bias, self.w2))
        return replace(self, w=self.w[low:high], bias=bias, w2=w2)


@dataclass(frozen=True, slots=True)
class Exps:
    """Stored exponentials 2^(z - key): one key per row and block of the vocabulary, z over ln 2."""

    values: Tensor  # [M, V]
    keys: Tensor  # float32 [blocks, M]
    block: int

    def rows(self, low: int, high: int) -> Exps:
        """Return the same exponentials of rows [low, high)."""
        return Exps(self.values[low:high], self.keys[:, low:high], self.block)


def score_rows(
    head: Head,
    targets: Tensor,
    values: dict[str, Tensor],
    blocks: Blocks,
    tile: Tensor | None,
    exps: Exps | None,
) -> None:
    """Fill ``values`` with the statistics it names, float32 [M]; "logps" and "norm" must be among them.

    Args:
        head: the operands; with a tile its ``x`` and ``x2`` are not read.
        targets: int64 [M].
        values: names out of ``STATS``, "logps", and "norm": log2 of the sum of exp(z).
        blocks: sizes.
        tile: float32 [M, V], the raw products, where a library has made them already.
        exps: filled on the way, where the backward shall read them.
    """
    num_rows, vocab = targets.shape[0], head.w.shape[0]
    row_blocks, vocab_blocks = _cdiv(num_rows, blocks.rows), _cdiv(vocab, blocks.vocab)
    splits, each = even_splits(row_blocks, vocab_blocks, _slots(targets, blocks))
    partials = targets.new_empty((NUM_FIELDS, splits, num_rows), dtype=torch.float32)
    stored = exps or Exps(partials, partials[0], 0)
    flags = {
        "ENTROPY": "entropy" in values,
        "SQUARES": "log_sum_p2" in values,
        "MEAN": "mean_logit" in values,
    }
    with _on(targets):
        stats_kernel[(row_blocks * splits,)](
            **_operands(head, blocks, use=tile is None),
            targets=targets,
            tile=partials if tile is None else tile,
            exps=stored.values,
            keys=stored.keys,
            partials=partials,
            M=num_rows,
            s_tile=0 if tile is None else tile.stride(0),
            s_exps=stored.values.stride(0),
            s_keys=stored.keys.stride(0),
            n_m=row_blocks,
            n_s=splits,
            n_each=each,
            FROM_TILE=tile is not None,
            KEEP_EXPS=exps is not None,
            **flags,
        )
        logps = values["logps"]
        merge_kernel[(_cdiv(num_rows, MERGE_ROWS),)](
            partials=partials,
            logps=logps,
            norm=values["norm"],
            logsumexp=values.get("logsumexp", logps),
            entropy=values.get("entropy", logps),
            log_sum_p2=values.get("log_sum_p2", logps),
            is_top1=values.get("is_top1", logps),
            mean_logit=values.get("mean_logit", logps),
            M=num_rows,
            V=vocab,
            n_s=splits,
            BM=MERGE_ROWS,
            LOGSUMEXP="logsumexp" in values,
            TOP1="is_top1" in values,
            **flags,
        )


def row_values(
    grads: dict[str, Tensor], logps: Tensor, norm: Tensor, stats: dict[str, Tensor], vocab: int
) -> Tensor:
    """Return [len(ROW_FIELDS), M]: upstream gradients as the gradient kernel wants them.

    Args:
        grads: float32 [M] by output, already times the head's scale.
        logps: of the targets.
        norm: log2 of the sum of exp(z).
        stats: "entropy" and "log_sum_p2" where they have a gradient.
        vocab: of the whole head.
    """
    zero = torch.zeros_like(norm)
    squares = grads.get("log_sum_p2", zero)
    at = {
        "norm": norm,
        "base": grads.get("logsumexp", zero) - 2 * squares,
        "logp": grads.get("logps", zero),
        # 1 - p from log p: a difference of nearly equal numbers would be lost where the model is certain
        "at_label": -grads.get("logps", zero) * torch.expm1(logps),
        "p_label": logps.exp(),
        "entropy_grad": grads.get("entropy", zero),
        "entropy": stats.get("entropy", zero),
        "p2": 2 * squares * (-stats["log_sum_p2"]).exp() if "log_sum_p2" in grads else zero,
        "flat": grads.get("mean_logit", zero) / vocab,
    }
    return torch.stack([at[name] for name in ROW_FIELDS])


def differentiate(
    head: Head,
    targets: Tensor,
    row_values: Tensor,
    terms: frozenset[str],
    dz: Tensor,
    blocks: Blocks,
    source: Tensor | Exps | None,
) -> None:
    """Fill ``dz`` [M, V] with the gradient by the raw products.

    Args:
        head: the operands.
        targets: int64 [M]; of a part of the vocabulary, relative to its first token.
        row_values: float32 [len(ROW_FIELDS), M], contiguous; what each row brings along.
        terms: which of "logps", "entropy", "log_sum_p2", "mean_logit" have a gradient.
        dz: in the products' dtype; may be the memory of stored exponentials of the same item size.
        blocks: sizes.
        source: None for logits made again, float32 [M, V] raw products, or stored exponentials.
    """
    num_rows, vocab = dz.shape
    origin = DOT if source is None else EXPS if isinstance(source, Exps) else TILE
    stored, keys, key_block = (None if isinstance(source, Exps) else source), row_values, blocks.vocab
    if isinstance(source, Exps):
        stored, keys, key_block = source.values, source.keys, source.block
        # a block that spanned two keys would read only one of them; it keeps its size by taking more rows
        vocab_block = min(blocks.vocab, key_block)
        blocks = replace(blocks, rows=blocks.rows * (blocks.vocab // vocab_block), vocab=vocab_block)
    row_blocks, vocab_blocks = _cdiv(num_rows, blocks.rows), _cdiv(vocab, blocks.vocab)
    programs = row_blocks * vocab_blocks
    if origin == DOT:
        programs = min(programs, _slots(targets, blocks))
    with _on(targets):
        gradient_kernel[(programs,)](
            **_operands(head, blocks, use=origin == DOT),
            targets=targets,
            source=dz if stored is None else stored,
            keys=keys,
            row_values=row_values,
            dz=dz,
            M=num_rows,
            s_source=0 if stored is None else stored.stride(0),
            s_dz=dz.stride(0),
            s_keys=keys.stride(0),
            n_m=row_blocks,
            n_v=vocab_blocks,
            BK=key_block,
            FROM=origin,
            LOGP="logps" in terms,
            ENTROPY="entropy" in terms,
            SQUARES="log_sum_p2" in terms,
            MEAN="mean_logit" in terms,
        )


def collect(
    values: Tensor, factors: Tensor | None, rows: Tensor, num_rows: int, dtype: torch.dtype
) -> Tensor:
    """Return [num_rows, D]: for each hidden row the sum of the values of all scored rows that it made.

    Args:
        values: float32 [M, D], contiguous.
        factors: float32 [M], multiplied in, or None.
        rows: int64 [M], the hidden row of each value; repeats allowed.
        num_rows: rows to return; those that made nothing are zero.
        dtype: of the sum; it is rounded once.
    """
    ordered, order = torch.sort(rows, stable=True)
    which = torch.arange(num_rows, device=rows.device)
    out = values.new_empty((num_rows, values.shape[1]), dtype=dtype)
    with _on(rows):
        collect_kernel[(num_rows, _cdiv(values.shape[1], COLLECT_COLUMNS))](
            values=values,
            factors=values if factors is None else factors,
            order=order,
            first=torch.searchsorted(ordered, which),
            last=torch.searchsorted(ordered, which, right=True),
            out=out,
            D=values.shape[1],
            HAS_FACTORS=factors is not None,
            BD=COLLECT_COLUMNS,
            EMULATE=INTERPRETING,
        )
    return out


def _operands(head: Head, blocks: Blocks, use: bool) -> dict[str, object]:
    """Return the arguments that describe the head and the blocks."""
    x, w, width = head.x, head.w, head.x.shape[1]
    x2, w2 = (x, w) if head.x2 is None or head.w2 is None else (head.x2, head.w2)
    tma = use and blocks.tma and _is_aligned(x) and _is_aligned(w)
    cap = head.softcap
    return {
        "x": described(x, blocks.rows, blocks.depth) if tma else x,
        "w": described(w, blocks.vocab, blocks.depth) if tma else w,
        "bias": w if head.bias is None else head.bias,
        "x2": x2,
        "w2": w2,
        "V": w.shape[0],
        "D": width,
        "R": x2.shape[1],
        "s_xm": x.stride(0),
        "s_wv": w.stride(0),
        "s_wd": w.stride(1),
        "s_x2m": x2.stride(0),
        "s_w2v": w2.stride(0),
        "s_w2r": w2.stride(1),
        "scale2": head.scale * LOG2E if cap is None else head.scale / cap * 2 * LOG2E,
        "cap2": 0.0 if cap is None else cap * LOG2E,
        "BM": blocks.rows,
        "BV": blocks.vocab,
        "BD": blocks.depth,
        "BR": 16 if head.x2 is None else max(16, min(64, 1 << (x2.shape[1] - 1).bit_length())),
        "GROUP": blocks.group,
        "HAS_BIAS": head.bias is not None,
        "HAS_CAP": cap is not None,
        "HAS_LORA": head.x2 is not None,
        "TMA": tma,
        "EVEN": width % blocks.depth == 0,
        # the interpreter multiplies bfloat16 as if it were integers, and cuts it off instead of rounding
        "EMULATE": INTERPRETING,
        "PRECISION": "tf32" if _allows_tf32() else "ieee",
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
    }


def _cdiv(size: int, block: int) -> int:
    return -(-size // block)


def _is_aligned(matrix: Tensor) -> bool:
    """Tell whether the copy engine can read a matrix: contiguous rows that start at multiples of 16 bytes."""
    row_bytes = matrix.stride(0) * matrix.element_size()
    return matrix.stride(1) == 1 and row_bytes % 16 == 0 and matrix.data_ptr() % 16 == 0


def _allows_tf32() -> bool:
    return bool(torch.backends.cuda.matmul.fp32_precision == "tf32")


def _slots(like: Tensor, blocks: Blocks) -> int:
    """Return how many programs run at once."""
    if not like.is_cuda:
        return 4
    processors: int = torch.cuda.get_device_properties(like.device).multi_processor_count
    return processors * blocks.per_processor


def _on(like: Tensor) -> AbstractContextManager[object]:
    """Make the tensor's device the one that Triton launches on."""
    return torch.cuda.device(like.device) if like.is_cuda else nullcontext()
