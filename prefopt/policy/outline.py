"""One pack of training on tensors without memory: how many bytes would be alive at every moment of it.

The model's own modules run forward and backward as they do in training, checkpointing, adapters and
autocast included; attention and head are stood in for. Two runs, on a sample and on the same sample
twice, tell what grows with the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from prefopt.errors import ModelError
from prefopt.kernels.linear_logp.footprint import HeadCall
from prefopt.policy.attention import use_attention
from prefopt.policy.ledger import Ledger, Moment, weightless
from prefopt.policy.stack import Stack
from prefopt.policy.stand_ins import (
    FORWARD,
    HEAD,
    NAME,
    REFERENCE,
    REFERENCE_HEAD,
    Row,
    Sample,
    Target,
)
from prefopt.policy.wrappers import causal_model, class_of


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
    reference_heads: tuple[HeadCall, ...]  # of references that score in the step


def outline(
    model: nn.Module,
    sample: Sample,
    target: Target,
    *,
    stats: Sequence[str] = (),
    references: Sequence[nn.Module | str] = (),
    reference_stats: Sequence[str] = (),
) -> Outline:
    """Run one pack, forward and backward, without memory and without numbers.

    Args:
        model: a causal language model, adapters included, as it is trained; on any device, the meta
            device too. It is copied, and never changed.
        sample: what packs look like.
        target: which kernels run, on what.
        stats: of the policy, that the loss reads.
        references: what scores every pack without gradient: models of their own, ``adapter_off`` or
            ``adapter`` for the policy's weights without and with an adapter.
        reference_stats: of the references, that the loss reads.

    Raises:
        ModelError: the model asks its tensors for values.
        RecipeError: the attention asked for cannot run on the target.
    """
    name = class_of(causal_model(model)).__name__
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            run = _Run(model, target, stats, references, reference_stats)
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
    return Outline(_lines(first, second, sample.num_tokens), run.head, tuple(run.reference_heads))


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
        target: Target,
        stats: Sequence[str],
        references: Sequence[nn.Module | str],
        reference_stats: Sequence[str],
    ) -> None:
        self.target, self.stats, self.reference_stats = target, stats, reference_stats
        self.policy = weightless(model).train()
        copies = {id(each): weightless(each).eval() for each in references if isinstance(each, nn.Module)}
        self.references = [copies.get(id(each), each) for each in references]
        self.models = [self.policy, *(each.requires_grad_(False) for each in copies.values())]
        for each in self.models:
            use_attention(causal_model(each), NAME)
        self.stacks = [Stack(causal_model(each)) for each in self.models]
        self.head: HeadCall | None = None
        self.reference_heads: list[HeadCall] = []

    def moments(self, sample: Sample) -> list[Moment]:
        """Run a pack of the sample's layout to see what layers hold, then one to count; return its moments."""
        if any(self.stacks[0].is_left_out):
            self._run(sample, Stack.observe, [])
        return self._run(sample, Stack.count, self.references)

    def _run(
        self, sample: Sample, prepare: Callable[[Stack, Ledger], None], references: list[nn.Module | str]
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
            row = Row(sample, self.target, ledger)
            with self._autocast():
                logps, self.head = row.score(self.policy, HEAD, self.stats)
                ledger.phase = REFERENCE
                self.reference_heads = [self._refer(row, reference) for reference in references]
            self.stacks[0].turn()
            torch.autograd.backward(logps.sum())
        for parameter in trained:
            parameter.grad = None
        return ledger.moments

    def _autocast(self) -> Any:
        # tensors without memory stand on the CPU whatever the machine
        dtype = self.target.autocast
        return nullcontext() if dtype is None else torch.autocast("cpu", dtype=dtype)

    @torch.no_grad()
    def _refer(self, row: Row, reference: nn.Module | str) -> HeadCall:
        if isinstance(reference, nn.Module):
            return row.score(reference, REFERENCE_HEAD, self.reference_stats)[1]
        with _evaluating(self.policy, without_adapter=reference == "adapter_off"):
            return row.score(self.policy, REFERENCE_HEAD, self.reference_stats)[1]


@contextmanager
def _evaluating(model: Any, *, without_adapter: bool) -> Iterator[None]:
    model.eval()
    with model.disable_adapter() if without_adapter else nullcontext():
        yield
    model.train()
