"""One step of training on tensors without memory: how many bytes would be alive at every moment of it.

The model's own modules run forward and backward as they do in training, checkpointing, adapters and
autocast included; only attention and head are replaced (``fake_kernels``). Two runs, on a sample and on the
same sample twice, tell what grows with the tokens.

A sample of 10 tokens has 100 bytes alive at some moment, and 150 when it is laid twice: 5 bytes for each token
and 50 whatever the tokens, so 50 + 5 * 4096 for a pack of 4096. A step has thousands of moments. One that has 80
and 90 is the line 70 + 1 * tokens, higher only below 5 tokens; a line that another is never below is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from prefopt.errors import ModelError
from prefopt.kernels.linear_logp.footprint import HeadCall
from prefopt.memory.fake_kernels import FAKE_ATTENTION, FakeRow, FakeScores, Keep
from prefopt.memory.layer_stack import LayerStack
from prefopt.memory.sample import Sample, Target
from prefopt.memory.tracking import (
    FORWARD,
    HEAD,
    REFERENCE,
    REFERENCE_HEAD,
    MemoryTracker,
    Moment,
    weightless,
)
from prefopt.policy.attention import use_attention
from prefopt.policy.wrappers import causal_model, class_of
from prefopt.types import MASK_STATS, PAIRED_STATS, STATS


class Line(NamedTuple):
    """Bytes alive at one moment as a function of the tokens in the row; parameters do not count."""

    fixed: float
    per_token: float
    gradients: int  # finished by then, and not counted in the other two

    def at(self, tokens: int) -> float:
        return self.fixed + self.per_token * tokens


@dataclass(frozen=True, slots=True)
class StepMemory:
    """What one pack of a training step holds at every moment, for any number of tokens."""

    lines: dict[str, tuple[Line, ...]]  # by phase
    head: HeadCall
    reference_heads: tuple[HeadCall, ...]  # of references that score in the step


@dataclass(frozen=True, slots=True)
class StepModels:
    """What scores a pack in a training step, and what the loss reads.

    Args:
        model: as it is trained, adapters included; on any device, the meta device too.
        references: what scores every pack without gradient: models of their own, ``adapter_off`` or
            ``adapter`` for the policy's weights without and with an adapter.
        stats: of the policy, that the loss reads beside its log-probs.
        reference_stats: of the references.
        layers: what is kept of the output of every layer of the reference, [M, D].
        masks: makes token weights of these and is trained along.
        copies_head: the reference's weights do not last, so that what is read of them is copied.
    """

    model: nn.Module
    references: tuple[nn.Module | str, ...] = ()
    stats: tuple[str, ...] = ()
    reference_stats: tuple[str, ...] = ()
    layers: Callable[[Tensor], Tensor] | None = None
    masks: nn.Module | None = None
    copies_head: bool = False

    @property
    def keep(self) -> Keep:
        if not set(self.stats) & {*PAIRED_STATS, *MASK_STATS}:
            return "no"
        return "copy" if self.copies_head else "yes"


def run_fake_step(step: StepModels, sample: Sample, target: Target) -> StepMemory:
    """Run one pack, forward and backward, without memory and without numbers.

    Args:
        step: what runs; models are copied, and never changed.
        sample: what packs look like.
        target: which kernels run, on what.

    Raises:
        ModelError: the model asks its tensors for values.
        RecipeError: the attention asked for cannot run on the target.
    """
    name = class_of(causal_model(step.model)).__name__
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            run = _Run(step, target)
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
    return StepMemory(_lines(first, second, sample.num_tokens), run.head, tuple(run.reference_heads))


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

    def __init__(self, step: StepModels, target: Target) -> None:
        self.step, self.target = step, target
        self.policy = weightless(step.model).train()
        copies = {
            id(each): weightless(each).eval() for each in step.references if isinstance(each, nn.Module)
        }
        self.references = [copies.get(id(each), each) for each in step.references]
        self.models = [self.policy, *(each.requires_grad_(False) for each in copies.values())]
        for each in self.models:
            use_attention(causal_model(each), FAKE_ATTENTION)
        self.stacks = [LayerStack(causal_model(each)) for each in self.models]
        self.masks = None if step.masks is None else weightless(step.masks).train()
        self.head: HeadCall | None = None
        self.reference_heads: list[HeadCall] = []

    def moments(self, sample: Sample) -> list[Moment]:
        """Run a pack of the sample's layout to see what layers hold, then one to count; return its moments."""
        if any(self.stacks[0].is_left_out):
            self._run(sample, LayerStack.observe, [])
        return self._run(sample, LayerStack.count, self.references)

    def _run(
        self,
        sample: Sample,
        prepare: Callable[[LayerStack, MemoryTracker], None],
        references: list[nn.Module | str],
    ) -> list[Moment]:
        modules = [*self.models, *([] if self.masks is None else [self.masks])]
        known = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        tracker = MemoryTracker(known, REFERENCE)
        trained = [p for module in (self.policy, *modules[len(self.models) :]) for p in _trained(module)]
        for each in self.stacks:
            prepare(each, tracker)
        with ExitStack() as stack:
            for parameter in trained:
                hook: Callable[..., Any] = parameter.register_post_accumulate_grad_hook
                stack.callback(hook(tracker.finish).remove)
            stack.enter_context(tracker)
            self._score(FakeRow(sample, self.target, tracker, self.step.layers), tracker, references)
        for parameter in trained:
            parameter.grad = None
        return tracker.moments

    def _score(self, row: FakeRow, tracker: MemoryTracker, references: list[nn.Module | str]) -> None:
        """Score the row with all references, then with the policy, and go back through it."""
        others = [self._refer(row, reference) for reference in references]
        tracker.phase = FORWARD
        with self._autocast():
            stats = [name for name in self.step.stats if name in (*STATS, *PAIRED_STATS)]
            found = row.score(self.policy, HEAD, stats)
        self.head, self.reference_heads = found.call, [other.call for other in others]
        total = found.logps.sum()
        if self.masks is not None and others:
            total = total + sum(weights.sum() for weights in self.masks(others[0].layers).values())
        self.stacks[0].turn()
        torch.autograd.backward(total)

    def _autocast(self) -> Any:
        # tensors without memory stand on the CPU whatever the machine
        dtype = self.target.autocast
        return nullcontext() if dtype is None else torch.autocast("cpu", dtype=dtype)

    @torch.no_grad()
    def _refer(self, row: FakeRow, reference: nn.Module | str) -> FakeScores:
        with ExitStack() as stack:
            stack.enter_context(self._autocast())
            model = reference
            if not isinstance(model, nn.Module):
                model = self.policy
                stack.enter_context(_evaluating(model, without_adapter=reference == "adapter_off"))
            found = row.score(model, REFERENCE_HEAD, self.step.reference_stats, self.step.keep)
            # its log-probs are all that stays of what is not asked for
            return found._replace(logps=found.logps.clone())


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


@contextmanager
def _evaluating(model: Any, *, without_adapter: bool) -> Iterator[None]:
    model.eval()
    with model.disable_adapter() if without_adapter else nullcontext():
        yield
    model.train()
