"""Attention and head without numbers: calls that take the memory their kernels say they take.

Models reach both through the doors that training uses: attention by a name known to transformers, the head
by ``policy.head.scoring``. A kernel tells its memory as a ``Footprint`` of the most bytes in its forward, those it
keeps for its backward, and the most in its backward. One of (30, 10, 25) becomes a tensor of 10 bytes that
lives until the backward is over, one of 20 that dies at once in the forward, and one of 15 in the backward,
beside operands, results and gradients, which are real in all but their memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from prefopt.kernels.footprint import Footprint
from prefopt.kernels.linear_logp.footprint import HeadCall
from prefopt.kernels.linear_logp.gemm import product_dtype
from prefopt.kernels.prefix_attention.choice import common_dtype, footprint_of, resolve_backend
from prefopt.kernels.prefix_attention.footprint import AttentionCall
from prefopt.kernels.prefix_attention.spec import AttentionProblem
from prefopt.memory.sample import Sample, Target
from prefopt.memory.tracking import (
    BACKWARD,
    HEAD_BACKWARD,
    MemoryTracker,
)
from prefopt.policy.attention import LAYOUT_ARGUMENT, register_attention
from prefopt.policy.head import ScoringHead, read_transform, scoring
from prefopt.policy.wrappers import causal_model, decoder_layers
from prefopt.types import STATS

FAKE_ATTENTION = "prefopt_fake"
"""The name by which a model attends without numbers."""

Keep = Literal["no", "yes", "copy"]


class FakeScores(NamedTuple):
    """What a model made of a row."""

    logps: Tensor  # [1, M, 1 + stats]
    call: HeadCall
    kept: tuple[Tensor, ...]  # rows and head, where asked for
    layers: tuple[Tensor, ...]


@dataclass(slots=True)
class FakeRow:
    """A packed row without numbers; travels down the model in place of the ``AttentionLayout``."""

    sample: Sample
    target: Target
    tracker: MemoryTracker
    layers: Callable[[Tensor], Tensor] | None = None  # what is kept of every layer of a reference
    counts: dict[Any, Footprint] = field(default_factory=dict)

    def score(self, model: nn.Module, phase: str, stats: Sequence[str], keep: Keep = "no") -> FakeScores:
        """Run a model on the row.

        Args:
            model: attends by ``FAKE_ATTENTION``.
            phase: what the tracker calls the moment of the head.
            stats: wanted beside the log-probs.
            keep: also return the rows that made the log-probs; "copy": with a copy of the head.
        """
        core, tokens = causal_model(model), self.sample.num_tokens
        ids, positions = (torch.zeros((1, tokens), dtype=torch.int64) for _ in range(2))
        score_at, targets = (torch.zeros(self.sample.num_scored, dtype=torch.int64) for _ in range(2))
        head = _Head(self, phase, score_at, targets, stats, read_transform(core), keep=keep)
        layers: list[Tensor] = []

        def remember(module: nn.Module, given: Any, output: Any) -> None:
            assert self.layers is not None
            hidden = output[0] if isinstance(output, tuple) else output
            layers.append(self.layers(hidden.detach().flatten(0, -2).index_select(0, score_at)))

        with ExitStack() as stack:
            stack.enter_context(scoring(core, head))
            if keep != "no" and self.layers is not None:
                for each in decoder_layers(core):
                    stack.callback(each.register_forward_hook(remember).remove)
            outputs = model(
                input_ids=ids,
                position_ids=positions,
                attention_mask=None,
                use_cache=False,
                **{LAYOUT_ARGUMENT: self},
            )
        assert head.call is not None
        return FakeScores(outputs.logits, head.call, head.kept, tuple(layers))

    def attention(self, problem: AttentionProblem, heads: tuple[int, int], window: int | None) -> Footprint:
        """Return what attention to this row holds on top of its operands and its result.

        Args:
            problem: the operands.
            heads: of queries, and of keys.
            window: most tokens that a token sees.

        Raises:
            RecipeError: the kernel asked for cannot serve, or its memory is not planned.
        """
        known = (problem, heads, window)
        if known not in self.counts:
            call = AttentionCall(
                self.sample.segments,
                *heads,
                problem.width,
                problem.value_width,
                problem.dtype.itemsize,
                window,
                problem.has_softcap or problem.has_sinks,
                self.target.device,
            )
            problem = replace(problem, gathered=call.gathered)
            place = "model.attention:"
            chosen = resolve_backend(self.target.attention, problem, self.target.machine, place)
            self.counts[known] = footprint_of(chosen.name, call, place)
        return self.counts[known]


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Take the memory of attention; the signature is that of transformers' attention interface."""
    row: FakeRow = kwargs[LAYOUT_ARGUMENT]
    dtype = common_dtype(query, key, value)
    query, key, value = (part.to(dtype) for part in (query, key, value))
    problem = AttentionProblem(dtype, query.shape[3], value.shape[3], softcap is not None, s_aux is not None)
    counts = row.attention(problem, (query.shape[1], key.shape[1]), sliding_window)
    apply: Callable[..., Tensor] = _Attention.apply
    return apply(query, key, value, s_aux, counts, torch.is_grad_enabled()), None


register_attention(FAKE_ATTENTION, _attend)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None,
        counts: Footprint,
        has_backward: bool,
    ) -> Tensor:
        out = value.new_empty((1, query.shape[2], query.shape[1], value.shape[3]))
        kept = _bytes(value, counts.kept if has_backward else 0)
        _bytes(value, counts.forward - counts.kept)
        ctx.save_for_backward(query, key, value, sinks, out, kept)
        ctx.working = counts.backward - counts.kept
        return out

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        parts = ctx.saved_tensors[:4]
        working = _bytes(upstream, ctx.working)
        grads = [None if part is None else torch.empty_like(part) for part in parts]
        del working
        return (*grads, None, None)


def _bytes(like: Tensor, count: int) -> Tensor:
    return like.new_empty(count, dtype=torch.uint8)


class _Head(ScoringHead):
    """Stand in for the head during one call of the model, and remember what it would be called with."""

    def __init__(self, row: FakeRow, phase: str, *rest: Any, keep: Keep) -> None:
        super().__init__(*rest, keep=keep)
        self.row, self.phase = row, phase
        self.call: HeadCall | None = None
        self.kept: tuple[Tensor, ...] = ()

    def score(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, lora: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        flat, (x2, w2) = hidden.flatten(0, -2), lora or (None, None)
        parts, with_grad = (flat, weight, bias, x2, w2), torch.is_grad_enabled()
        trains = [with_grad and part is not None and part.requires_grad for part in parts]
        self.call = HeadCall(
            num_rows=self.targets.numel(),
            num_tokens=flat.shape[0],
            vocab=weight.shape[0],
            width=weight.shape[1],
            hidden=flat.dtype,
            weight=weight.dtype,
            product=product_dtype(flat, weight),
            trains_hidden=trains[0],
            trains_weight=trains[1],
            trains_rest=any(trains[2:]),
            stats=tuple(name for name in self.stats if name in STATS),
            softcap=self.transform.softcap,
            device=self.row.target.device,
        )
        tracker = self.row.tracker
        tracker.note(self.phase)
        keeps_hidden = self.call.mode(self.row.target.head) in ("cached", "recompute")
        shape = (1, self.targets.numel(), 1 + len(self.stats))
        apply: Callable[..., Tensor] = _Logps.apply
        self.packed = apply(*parts, shape, keeps_hidden, tracker)
        if self.keep != "no":
            self.kept = (flat.detach().index_select(0, self.score_at),)
        if self.keep == "copy":
            self.kept += (weight.detach().clone(),)
        return self.packed


class _Logps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        *parts, shape, keeps_hidden, tracker = args
        ctx.save_for_backward(parts[0] if keeps_hidden else None)
        ctx.tracker = tracker
        ctx.like = [None if part is None else (part.shape, part.dtype) for part in parts]
        hidden: Tensor = parts[0]
        return hidden.new_empty(shape, dtype=torch.promote_types(hidden.dtype, torch.float32))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        ctx.tracker.note(HEAD_BACKWARD)
        ctx.tracker.phase = BACKWARD
        grads = [
            upstream.new_empty(like[0], dtype=like[1]) if wanted else None
            for like, wanted in zip(ctx.like, ctx.needs_input_grad[:5], strict=True)
        ]
        return (*grads, None, None, None)
