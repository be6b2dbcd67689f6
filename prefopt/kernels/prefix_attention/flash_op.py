"""The one place that calls torch's flash attention over sequences of different lengths.

The op is private to torch, so its signature is compared with what is passed before it is used
(``missing``). FA3 and FA4, activated by ``torch.nn.attention.activate_flash_attention_impl``, take the
place of the same op inside torch and so serve here too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

_FORWARD = (
    *("query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k"),
    *("dropout_p", "is_causal", "return_debug_mask"),
)
_BACKWARD = (
    *("grad_out", "query", "key", "value", "out", "logsumexp", "cum_seq_q", "cum_seq_k", "max_q", "max_k"),
    *("dropout_p", "is_causal", "rng_state", "unused"),
)
_BY_NAME = ("scale", "window_size_left", "window_size_right")


@dataclass(frozen=True, slots=True)
class Sequences:
    """Say where every sequence's queries and keys lie: on the device, and the longest on the host."""

    cu_queries: Tensor  # int32 [n + 1]
    cu_keys: Tensor  # int32 [n + 1]
    longest_queries: int
    longest_keys: int


class VarlenOp(Protocol):
    """Attend causally within each sequence, its last query aligned with its last key."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, at: Sequences, scale: float, window: int | None
    ) -> tuple[Tensor, Tensor]:
        """Return the output [Tq, Hq, d] and the log-sum-exp of every query, for ``backward`` alone.

        Args:
            q: [Tq, Hq, d].
            k: [Tk, Hkv, d].
            v: [Tk, Hkv, d].
            at: which rows belong together.
            scale: multiplies the scores.
            window: keys a query sees at most; None: all up to its own.
        """

    def backward(
        self,
        dout: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        at: Sequences,
        scale: float,
        window: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of q, k and v, in their shapes and dtype."""


class TorchFlash:
    """The flash attention that torch was built with, or that was activated in its place."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, at: Sequences, scale: float, window: int | None
    ) -> tuple[Tensor, Tensor]:
        """Return output and log-sum-exp."""
        causal, left = _reach(at, window)
        op: Any = torch.ops.aten._flash_attention_forward
        out, lse, *_ = op(
            q,
            k,
            v,
            at.cu_queries,
            at.cu_keys,
            at.longest_queries,
            at.longest_keys,
            0.0,
            causal,
            False,
            scale=scale,
            window_size_left=left,
            window_size_right=0,
        )
        return out, lse

    def backward(
        self,
        dout: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        at: Sequences,
        scale: float,
        window: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of q, k and v."""
        causal, left = _reach(at, window)
        op: Any = torch.ops.aten._flash_attention_backward
        dq, dk, dv = op(
            dout,
            q,
            k,
            v,
            out,
            lse,
            at.cu_queries,
            at.cu_keys,
            at.longest_queries,
            at.longest_keys,
            0.0,
            causal,
            # the state of a dropout that is not used
            torch.zeros(2, dtype=torch.uint64, device=q.device),
            torch.empty(0, device=q.device),
            scale=scale,
            window_size_left=left,
            window_size_right=0,
        )
        return dq, dk, dv


FLASH: VarlenOp = TorchFlash()


def _reach(at: Sequences, window: int | None) -> tuple[bool, int]:
    """Return whether the mask is plainly causal, and how many keys before its own a query sees; -1: all."""
    if window is None or window >= at.longest_keys:
        return True, -1
    return False, window - 1


@cache
def missing() -> str | None:
    """Say what this torch lacks for ``TorchFlash``, if anything."""
    if not torch.backends.cuda.is_flash_attention_available():
        return "needs flash attention, which this torch was built without"
    return signature_gap()


def signature_gap() -> str | None:
    """Say which of torch's two ops is not called the way ``TorchFlash`` calls it, if one is."""
    for name, positional in (
        ("_flash_attention_forward", _FORWARD),
        ("_flash_attention_backward", _BACKWARD),
    ):
        op = getattr(torch.ops.aten, name, None)
        if op is None:
            return f"needs {name}, which torch {torch.__version__} does not have"
        arguments = op.default._schema.arguments
        in_order = tuple(a.name for a in arguments if not a.kwarg_only)
        by_name = {a.name: a.has_default_value() for a in arguments if a.kwarg_only}
        demanded = {a for a, has_default in by_name.items() if not has_default} - set(_BY_NAME)
        if in_order != positional or not set(_BY_NAME) <= set(by_name) or demanded:
            return f"does not know how torch {torch.__version__} calls {name}"
    return None


def active_name() -> str:
    """Return which flash attention serves: FA2, which comes with torch, or one activated in its place."""
    current = getattr(torch.nn.attention, "current_flash_attention_impl", None)
    name = None if current is None else current()
    return "FA2" if name is None else str(name)
