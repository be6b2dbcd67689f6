"""One pack of training on tensors without memory: how many bytes would be alive at every moment of it.

The model's own modules run forward and backward as they do in training, checkpointing, adapters and
autocast included. Attention and head are stood in for: they take the memory that their kernels say they
take. Two runs, on a sample and on the same sample twice, tell what grows with the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from prefopt.errors import ModelError
from prefopt.kernels.footprint import Footprint
from prefopt.kernels.linear_logp.footprint import HeadCall
from prefopt.kernels.linear_logp.gemm import product_dtype
from prefopt.kernels.prefix_attention import one_dtype
from prefopt.kernels.prefix_attention.footprint import AttentionCall
from prefopt.policy.attention import LAYOUT, register, use_attention
from prefopt.policy.head import ScoringHead, read_transform, scoring
from prefopt.policy.ledger import Ledger, Moment, weightless
from prefopt.policy.stack import Stack
from prefopt.policy.wrappers import causal_model, class_of
from prefopt.types import PackedBatch, Segments

NAME = "prefopt_outline"
FORWARD, REFERENCE, BACKWARD = "forward", "reference", "backward"
HEAD, REFERENCE_HEAD, HEAD_BACKWARD = "head", "reference head", "head backward"
"""Phases; the last three are single moments, at which a head's own memory comes on top."""


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
class Machine:
    """What the kernels run on, and which of them run."""

    device: str = "cuda"
    attention: str = "auto"
    head: str = "fused"
    autocast: torch.dtype | None = None


class Line(NamedTuple):
    """Bytes alive at one moment as a function of the tokens in the row; parameters do not count."""

    fixed: float
    per_token: float
    gradients: int  # finished by then, and not counted in the other two

    def at(self, tokens: int) -> float:
        return self.fixed + self.per_token * tokens


@dataclass(frozen=True, slots=True)
class Outline:
    """What one pack of a training step holds at every moment, for any number of tokens."""

    lines: dict[str, tuple[Line, ...]]  # by phase
    head: HeadCall
    reference_head: HeadCall | None  # where a reference scores in every step


def outline(
    model: nn.Module,
    sample: Sample,
    machine: Machine,
    *,
    stats: Sequence[str] = (),
    reference: nn.Module | str | None = None,
    reference_stats: Sequence[str] = (),
) -> Outline:
    """Run one pack, forward and backward, without memory and without numbers.

    Args:
        model: a causal language model, adapters included, as it is trained; on any device, the meta
            device too. It is copied, and never changed.
        sample: what packs look like.
        machine: which kernels run.
        stats: of the policy, that the loss reads.
        reference: a model that scores every pack without gradient; ``adapter_off`` or ``adapter`` for
            the policy's own weights without and with an adapter; None for no reference in the step.
        reference_stats: of the reference, that the loss reads.

    Raises:
        ModelError: the model asks its tensors for values.
    """
    name = class_of(causal_model(model)).__name__
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            run = _Run(model, machine, stats, reference, reference_stats)
            first, second = run.moments(sample), run.moments(sample.twice())
    except (RuntimeError, NotImplementedError) as error:
        raise ModelError(
            f"model: the memory of {name} cannot be planned, since it cannot run without numbers "
            f"({' '.join(str(error).split())[:200]})."
        ) from error
    if [moment.phase for moment in first] != [moment.phase for moment in second]:
        raise ModelError(
            f"model: the memory of {name} cannot be planned, since what it does depends on the tokens."
        )
    assert run.head is not None
    return Outline(_lines(first, second, sample.num_tokens), run.head, run.reference_head)


def _lines(first: Sequence[Moment], second: Sequence[Moment], tokens: int) -> dict[str, tuple[Line, ...]]:
    """Lay a line through every pair of moments and keep, phase by phase, those that can be the highest."""
    found: dict[str, set[Line]] = {}
    for once, again in zip(first, second, strict=True):
        per_token = (again.live - once.live) / tokens
        line = Line(once.live - per_token * tokens, per_token, once.gradients)
        found.setdefault(once.phase, set()).add(line)
    return {phase: _highest(lines) for phase, lines in found.items()}


def _highest(lines: set[Line]) -> tuple[Line, ...]:
    """Leave out every line that another one is nowhere below."""
    kept: list[Line] = []
    for line in sorted(lines, reverse=True, key=lambda line: (line.per_token, line.fixed, line.gradients)):
        if not any(line.fixed <= other.fixed and line.gradients <= other.gradients for other in kept):
            kept.append(line)
    return tuple(kept)


class _Run:
    """Hold the copies without memory, and run packs through them."""

    def __init__(
        self,
        model: nn.Module,
        machine: Machine,
        stats: Sequence[str],
        reference: nn.Module | str | None,
        reference_stats: Sequence[str],
    ) -> None:
        self.machine, self.stats, self.reference_stats = machine, stats, reference_stats
        self.policy = weightless(model).train()
        self.reference: nn.Module | str | None = reference
        if isinstance(reference, nn.Module):
            self.reference = weightless(reference).eval().requires_grad_(False)
            use_attention(causal_model(self.reference), NAME)
        use_attention(causal_model(self.policy), NAME)
        self.models = [self.policy, *([self.reference] if isinstance(self.reference, nn.Module) else [])]
        self.stacks = [Stack(causal_model(model)) for model in self.models]
        self.head: HeadCall | None = None
        self.reference_head: HeadCall | None = None

    def moments(self, sample: Sample) -> list[Moment]:
        """Run a pack of the sample's layout to see what layers hold, then one to count, and return its moments."""
        self._run(sample, Stack.observe, with_reference=False)
        return self._run(sample, Stack.count, with_reference=self.reference is not None)

    def _run(
        self, sample: Sample, prepare: Callable[[Stack, Ledger], None], *, with_reference: bool
    ) -> list[Moment]:
        known = [tensor for model in self.models for tensor in (*model.parameters(), *model.buffers())]
        ledger = Ledger(known, FORWARD)
        trained = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        for each in self.stacks:
            prepare(each, ledger)
        with ExitStack() as stack:
            for parameter in trained:
                hook: Callable[..., Any] = parameter.register_post_accumulate_grad_hook
                stack.callback(hook(ledger.finish).remove)
            stack.enter_context(ledger)
            row = _Row(sample, self.machine, ledger)
            with self._autocast():
                logps, self.head = row.score(self.policy, HEAD, self.stats)
                if with_reference:
                    ledger.phase = REFERENCE
                    self.reference_head = self._refer(row)
            self.stacks[0].turn()
            torch.autograd.backward(logps.sum())
        for parameter in trained:
            parameter.grad = None
        return ledger.moments

    def _autocast(self) -> Any:
        # tensors without memory stand on the CPU whatever the machine
        dtype = self.machine.autocast
        return nullcontext() if dtype is None else torch.autocast("cpu", dtype=dtype)

    @torch.no_grad()
    def _refer(self, row: _Row) -> HeadCall:
        if isinstance(self.reference, nn.Module):
            return row.score(self.reference, REFERENCE_HEAD, self.reference_stats)[1]
        with _evaluating(self.policy, without_adapter=self.reference == "adapter_off"):
            return row.score(self.policy, REFERENCE_HEAD, self.reference_stats)[1]


@contextmanager
def _evaluating(model: Any, *, without_adapter: bool) -> Iterator[None]:
    model.eval()
    with model.disable_adapter() if without_adapter else nullcontext():
        yield
    model.train()


@dataclass(slots=True)
class _Row:
    """A packed row without numbers; stands where attention expects its layout."""

    sample: Sample
    machine: Machine
    ledger: Ledger
    counts: dict[Any, Footprint] = field(default_factory=dict)

    def score(self, model: nn.Module, phase: str, stats: Sequence[str]) -> tuple[Tensor, HeadCall]:
        """Run a model on the row and return its "logits" and what its head was called with."""
        core, tokens, scored = causal_model(model), self.sample.num_tokens, self.sample.num_scored
        ids, positions = (torch.zeros((1, tokens), dtype=torch.int64) for _ in range(2))
        score_at, targets = (torch.zeros(scored, dtype=torch.int64) for _ in range(2))
        head = _OutlineHead(self, phase, score_at, targets, stats, read_transform(core))
        with scoring(core, head):
            outputs = model(
                input_ids=ids, position_ids=positions, attention_mask=None, use_cache=False, **{LAYOUT: self}
            )
        assert head.call is not None
        return outputs.logits, head.call

    def attention(
        self, query: Tensor, key: Tensor, value: Tensor, window: int | None, odd: bool
    ) -> Footprint:
        """Return what attention with these operands holds on top of them."""
        sizes = (
            query.shape[1],
            key.shape[1],
            query.shape[3],
            value.shape[3],
            query.dtype.itemsize,
            window,
            odd,
        )
        if sizes not in self.counts:
            call = AttentionCall(self.sample.segments, *sizes, self.machine.device)
            self.counts[sizes] = call.footprint(self.machine.attention)
        return self.counts[sizes]


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
    row: _Row = kwargs[LAYOUT]
    query, key, value = one_dtype(query, key, value)
    counts = row.attention(query, key, value, sliding_window, softcap is not None or s_aux is not None)
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


class _OutlineHead(ScoringHead):
    """Stand in for the head during one call of the model, and remember what it would be called with."""

    def __init__(self, row: _Row, phase: str, *rest: Any) -> None:
        super().__init__(*rest)
        self.row, self.phase = row, phase
        self.call: HeadCall | None = None

    def score(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, **extra: Any) -> Tensor:
        flat, (x2, w2) = hidden.flatten(0, -2), extra.get("lora", (None, None))
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
            stats=self.stats,
            softcap=self.transform.softcap,
            device=self.row.machine.device,
        )
        ledger = self.row.ledger
        ledger.note(self.phase)
        keeps_hidden = self.call.mode(self.row.machine.head) in ("cached", "recompute")
        shape = (1, self.targets.numel(), 1 + len(self.stats))
        apply: Callable[..., Tensor] = _Head.apply
        self.packed = apply(*parts, shape, keeps_hidden, ledger)
        return self.packed


class _Head(torch.autograd.Function):
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
