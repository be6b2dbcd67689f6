"""Attention and head without numbers: calls that take the memory their kernels say they take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from prefopt.kernels import which_impl
from prefopt.kernels.footprint import Footprint
from prefopt.kernels.linear_logp.footprint import HeadCall
from prefopt.kernels.linear_logp.gemm import product_dtype
from prefopt.kernels.prefix_attention import choice
from prefopt.kernels.prefix_attention.footprint import AttentionCall
from prefopt.memory.ledger import Ledger
from prefopt.policy.attention import LAYOUT, register
from prefopt.policy.head import ScoringHead, read_transform, scoring
from prefopt.policy.wrappers import causal_model, decoder_layers
from prefopt.types import STATS, PackedBatch, Segments

NAME = "prefopt_outline"
FORWARD, REFERENCE, BACKWARD = "forward", "reference", "backward"
HEAD, REFERENCE_HEAD, HEAD_BACKWARD = "head", "reference head", "head backward"
"""Phases; the last three are single moments, at which a head's own memory comes on top."""

Keep = Literal["no", "yes", "copy"]

_NEW_GPU = choice.Machine("cuda", (9, 0))


@dataclass(frozen=True, slots=True)
class Sample:
    """A stretch of a packed row that stands for the data: how it is cut up, and how much of it is scored."""

    segments: Segments
    num_scored: int

    @classmethod
    def of(cls, batch: PackedBatch) -> Sample:
        """Take the layout of a batch."""
        return cls(batch.segments, sum(batch.lengths))

    @classmethod
    def uniform(cls, prompt: int = 512, answers: Sequence[int] = (256, 256)) -> Sample:
        """Take one group: a prompt of so many tokens, shared by answers of so many tokens each."""
        lengths = (prompt, *answers)
        starts = tuple(sum(lengths[:at]) for at in range(len(lengths)))
        return cls(Segments(starts, lengths, (-1, *[0] * len(answers))), sum(answers))

    @property
    def num_tokens(self) -> int:
        return sum(self.segments.lengths)

    def scored(self, tokens: int) -> int:
        """Return how many tokens a row of ``tokens`` like this one scores."""
        return round(tokens * self.num_scored / self.num_tokens)

    def twice(self) -> Sample:
        """Return the same stretch laid end to end with itself."""
        once, count = self.segments, len(self.segments)
        again = Segments(
            starts=(*once.starts, *(start + self.num_tokens for start in once.starts)),
            lengths=once.lengths * 2,
            parents=(*once.parents, *(parent if parent < 0 else parent + count for parent in once.parents)),
        )
        return Sample(again, 2 * self.num_scored)


@dataclass(frozen=True, slots=True)
class Target:
    """What a step is planned for: a machine, and what is asked of it; by default a GPU of today."""

    machine: choice.Machine = _NEW_GPU
    attention: str = "auto"
    head: str = "fused"
    autocast: torch.dtype | None = None

    @classmethod
    def of(
        cls,
        device: torch.device | str,
        dtype: torch.dtype,
        attention: str = "auto",
        autocast: torch.dtype | None = None,
    ) -> Target:
        """Look at a device that is here.

        Args:
            device: cpu or cuda.
            dtype: of the weights.
            attention: the kernel asked for.
            autocast: compute in this dtype while weights keep theirs.
        """
        like = torch.empty((0, 0), dtype=dtype, device=device)
        return cls(choice.machine_of(like.device), attention, which_impl(like, like), autocast)

    @property
    def device(self) -> str:
        return self.machine.device


class Scored(NamedTuple):
    """What a model made of a row."""

    logps: Tensor  # [1, M, 1 + stats]
    call: HeadCall
    kept: tuple[Tensor, ...]  # rows and head, where asked for
    layers: tuple[Tensor, ...]


@dataclass(slots=True)
class Row:
    """A packed row without numbers; stands where attention expects its layout."""

    sample: Sample
    target: Target
    ledger: Ledger
    layers: Callable[[Tensor], Tensor] | None = None  # what is kept of every layer of a reference
    counts: dict[Any, Footprint] = field(default_factory=dict)

    def score(self, model: nn.Module, phase: str, stats: Sequence[str], keep: Keep = "no") -> Scored:
        """Run a model on the row.

        Args:
            model: attends by ``NAME``.
            phase: what the ledger calls the moment of the head.
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
                input_ids=ids, position_ids=positions, attention_mask=None, use_cache=False, **{LAYOUT: self}
            )
        assert head.call is not None
        return Scored(outputs.logits, head.call, head.kept, tuple(layers))

    def attention(self, problem: choice.Problem, heads: tuple[int, int], window: int | None) -> Footprint:
        """Return what attention to this row holds on top of its operands and its result.

        Args:
            problem: the operands.
            heads: of queries, and of keys.
            window: most tokens that a token sees.

        Raises:
            RecipeError: the kernel asked for cannot serve.
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
            chosen = choice.resolve(self.target.attention, problem, self.target.machine, "model.attention:")
            self.counts[known] = call.footprint(chosen.name)
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
    row: Row = kwargs[LAYOUT]
    dtype = choice.common_dtype(query, key, value)
    query, key, value = (part.to(dtype) for part in (query, key, value))
    problem = choice.Problem(dtype, query.shape[3], value.shape[3], softcap is not None, s_aux is not None)
    counts = row.attention(problem, (query.shape[1], key.shape[1]), sliding_window)
    apply: Callable[..., Tensor] = _Attention.apply
    return apply(query, key, value, s_aux, counts, torch.is_grad_enabled()), None


register(NAME, _attend)


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

    def __init__(self, row: Row, phase: str, *rest: Any, keep: Keep) -> None:
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
        ledger = self.row.ledger
        ledger.note(self.phase)
        keeps_hidden = self.call.mode(self.row.target.head) in ("cached", "recompute")
        shape = (1, self.targets.numel(), 1 + len(self.stats))
        apply: Callable[..., Tensor] = _Logps.apply
        self.packed = apply(*parts, shape, keeps_hidden, ledger)
        if self.keep != "no":
            self.kept = (flat.detach().index_select(0, self.score_at),)
        if self.keep == "copy":
            self.kept += (weight.detach().clone(),)
        return self.packed


class _Logps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        *parts, shape, keeps_hidden, ledger = args
        ctx.save_for_backward(parts[0] if keeps_hidden else None)
        ctx.ledger = ledger
        ctx.like = [None if part is None else (part.shape, part.dtype) for part in parts]
        hidden: Tensor = parts[0]
        return hidden.new_empty(shape, dtype=torch.promote_types(hidden.dtype, torch.float32))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        ctx.ledger.note(HEAD_BACKWARD)
        ctx.ledger.phase = BACKWARD
        grads = [
            upstream.new_empty(like[0], dtype=like[1]) if wanted else None
            for like, wanted in zip(ctx.like, ctx.needs_input_grad[:5], strict=True)
        ]
        return (*grads, None, None, None)
