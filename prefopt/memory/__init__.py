"""Will it fit: the memory of a training run on one rank, part by part, before anything is loaded.

What stays (weights, gradients, the optimizer's state) is counted weight by weight. What comes and goes
(activations, working memory) is taken from one training step on tensors without memory, which gives, for
every moment, bytes as a function of the tokens in the pack; the plan adds up and finds the highest moment.

The files, in the order in which they work:

1. ``sample``: what a pack looks like, and the machine and kernels that it is planned for.
2. ``tracking``: tensors without memory, and a count of the bytes of them that would be alive.
3. ``fake_kernels``: attention and head, which take the memory that the real kernels say they take.
4. ``layer_stack``: of many layers that are alike four run, and the others only count.
5. ``fake_step``: reference, forward and backward on all of that, once and on twice the tokens: what is fixed,
   and what grows.
6. here: the sum. With 600 bytes of weights, 100 of gradients, 200 of AdamW, and a highest moment of 50 bytes
   and 5 for each token, a pack of 20 tokens needs 600 + 100 + 200 + 50 + 5 * 20 = 1050 bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor, nn

from prefopt.engine.sharding import units_of
from prefopt.kernels.footprint import Footprint
from prefopt.kernels.token_kl.footprint import with_kl
from prefopt.memory.fake_step import StepMemory, StepModels, run_fake_step
from prefopt.memory.sample import Sample, Target
from prefopt.memory.tracking import (
    BACKWARD,
    FORWARD,
    HEAD,
    HEAD_BACKWARD,
    REFERENCE,
    REFERENCE_HEAD,
)
from prefopt.optim import OPTIMIZERS, kept, kept_bytes, trainable

__all__ = ["MemoryPlan", "Ranks", "Sample", "Target", "plan_model_memory"]

GIB = 1 << 30
CONTEXT = 900 << 20
"""An estimate of what a process on a GPU holds besides tensors: the driver's context, loaded kernels, workspaces."""
COLLECTIVES = GIB
"""An estimate of the buffers through which GPUs talk to each other."""
FRAGMENTATION = 0.04
"""An estimate of what the allocator of a GPU loses between blocks, as a share of what it has handed out."""
_PHASES = {
    FORWARD: "forward of a layer",
    HEAD: "log-probs",
    REFERENCE: "forward of the reference",
    REFERENCE_HEAD: "log-probs of the reference",
    HEAD_BACKWARD: "gradient of the log-probs",
    BACKWARD: "backward of a layer",
}


@dataclass(frozen=True, slots=True)
class Ranks:
    """How many processes train together, and whether they share the weights (FSDP2) or only gradients (DDP)."""

    count: int = 1
    is_sharded: bool = False
    reshard: bool = True  # gathered weights are given up between forward and backward
    units: tuple[str, ...] = ()  # class names of the layers; empty takes those that the model names

    @property
    def copies_gradients(self) -> bool:
        """Tell whether gradients are copied into buckets on their way to the other ranks."""
        return self.count > 1 and not self.is_sharded

    def part(self, tensor: Tensor) -> Tensor:
        """Return what the rank that holds most of a parameter has of it, without memory: whole rows, spread evenly."""
        shape = tensor.shape
        if self.is_sharded and tensor.dim():
            shape = torch.Size((ceil(shape[0] / self.count), *shape[1:]))
        return torch.empty(shape, dtype=tensor.dtype, device="meta")

    def share(self, tensor: Tensor) -> int:
        """Bytes of what the rank that holds most of a parameter has of it."""
        return self.part(tensor).nbytes


class Peak(NamedTuple):
    """The highest moment of a pack."""

    phase: str
    live: int  # what comes and goes, finished gradients apart
    gradients: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes that one rank holds at most while it trains, for any number of tokens per batch."""

    weights: int
    gradients: int
    moments: int  # the state of the optimizer
    buckets: int  # copies of gradients on their way between ranks (DDP)
    gathered: int  # whole weights and gradients of the units at work (FSDP2)
    references: int  # those that are models of their own
    step: StepMemory
    sample: Sample
    target: Target
    ranks: Ranks
    accumulates: bool  # gradients of earlier packs are there while a pack runs
    diverges: bool = False  # the loss reads the divergence from the reference, token by token
    unpacked: int = 0  # the weight at work, out of few bits
    optimizer: str = "adamw"

    def parts(self, tokens: int) -> dict[str, int]:
        """Return what the memory goes to at the highest moment of a pack of ``tokens``; it adds up to ``total``."""
        peak = self.peak(tokens)
        activations = min(peak.live, self.activations(tokens))
        found = {
            "weights": self.weights,
            "references": self.references,
            "gradients": peak.gradients,
            OPTIMIZERS[self.optimizer].label: self.moments,
            "gradients on their way (DDP)": self.buckets,
            "gathered weights (FSDP2)": self.gathered,
            "unpacked weight": self.unpacked,
            "activations": activations,
            f"working memory: {_PHASES[peak.phase]}": peak.live - activations,
        }
        found = {name: size for name, size in found.items() if size}
        if self.target.device == "cuda":
            found["CUDA and allocator, estimated"] = self._overhead(sum(found.values()))
        return found

    def activations(self, tokens: int) -> int:
        """Return the bytes that the forward of a pack leaves for its backward, of the head too."""
        return round(self.step.lines[HEAD_BACKWARD][0].at(tokens)) + self._heads(tokens)[0].kept

    def allocated(self, tokens: int) -> int:
        """Return the bytes of all tensors at the highest moment: what ``torch.cuda.max_memory_allocated`` reads."""
        peak = self.peak(tokens)
        stays = self.weights + self.references + self.moments + self.buckets + self.gathered + self.unpacked
        return stays + peak.live + peak.gradients

    def total(self, tokens: int) -> int:
        """Return all bytes that a device must have for packs of ``tokens``."""
        allocated = self.allocated(tokens)
        return allocated + (self._overhead(allocated) if self.target.device == "cuda" else 0)

    def largest_budget(self, limit: int) -> int:
        """Return the most tokens per batch that fit into ``limit`` bytes; 0 if no pack fits."""
        low, high = 0, 1
        while self.total(high) <= limit:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.total(middle) <= limit else (low, middle)
        return low

    def peak(self, tokens: int) -> Peak:
        """Return the highest moment of a pack of ``tokens``."""
        return max(self._peaks(tokens), key=lambda peak: peak.live + peak.gradients)

    def _peaks(self, tokens: int) -> Iterator[Peak]:
        head, *others = self._heads(tokens)
        extra = {HEAD: head.forward, HEAD_BACKWARD: head.backward}
        if others:
            extra[REFERENCE_HEAD] = max(other.forward for other in others)
        for phase, lines in self.step.lines.items():
            for line in lines:
                gradients = self.gradients if self.accumulates else line.gradients
                yield Peak(phase, round(line.at(tokens)) + extra.get(phase, 0), gradients)

    def _heads(self, tokens: int) -> list[Footprint]:
        """Count the head of the policy, and those of references that score in the step."""
        scored = self.sample.scored(tokens)
        calls = (self.step.head, *self.step.reference_heads)
        sized = [replace(call, num_rows=scored, num_tokens=tokens) for call in calls]
        policy, *others = [call.footprint(self.target.head) for call in sized]
        return [with_kl(policy, sized[0]) if self.diverges else policy, *others]

    def _overhead(self, allocated: int) -> int:
        between = COLLECTIVES if self.ranks.count > 1 else 0
        return CONTEXT + between + round(FRAGMENTATION * allocated)


def plan_model_memory(
    model: nn.Module,
    sample: Sample | None = None,
    target: Target | None = None,
    *,
    ranks: Ranks | None = None,
    references: Sequence[nn.Module | str] = (),
    stats: Sequence[str] = (),
    reference_stats: Sequence[str] = (),
    layers: Callable[[Tensor], Tensor] | None = None,
    masks: nn.Module | None = None,
    accumulates: bool = True,
    optimizer: str = "adamw",
) -> MemoryPlan:
    """Plan the memory of training ``model``.

    Args:
        model: a causal language model as it is trained, with its adapters and checkpointing, best on the
            meta device, where it takes no memory; ``policy.load.skeleton`` builds one from a config.
        sample: what packs look like; None takes a prompt of 512 tokens with two answers of 256.
        target: which kernels run, on what; None is a GPU of today, without autocast.
        ranks: None is one process.
        references: what scores in every step: models of their own (``model`` again for a frozen copy of
            the start), ``adapter_off`` or ``adapter`` for the policy's weights without or with an adapter.
            References whose log-probs are cached take nothing.
        stats: what the loss reads beside the policy's log-probs, by the names in ``types``.
        reference_stats: likewise of the references.
        layers: what is kept of every layer of the reference for such a statistic, from [M, D].
        masks: makes token weights of that, and is trained along.
        accumulates: steps have several packs, so that gradients are there while a pack runs.
        optimizer: its name in ``optim.OPTIMIZERS``.

    Raises:
        ModelError: the model cannot run without numbers.
        RecipeError: the attention asked for cannot run on the target.
    """
    sample, target, ranks = sample or Sample.uniform(), target or Target(), ranks or Ranks()
    own = [each for each in references if isinstance(each, nn.Module)]
    step = StepModels(
        model,
        tuple(references),
        stats=tuple(stats),
        reference_stats=tuple(reference_stats),
        layers=layers,
        masks=masks,
        copies_head=ranks.is_sharded,
    )
    trained = [ranks.share(p) for p in trainable(model).values()]
    # masks are whole on every rank
    trained += [] if masks is None else [p.nbytes for p in trainable(masks).values()]
    apart = [model, *own] if ranks.is_sharded else []
    return MemoryPlan(
        weights=_held(model, ranks) + (0 if masks is None else _held(masks, Ranks())),
        gradients=sum(trained),
        moments=kept_bytes(optimizer, kept(optimizer, model, masks, ranks.part).values()),
        buckets=sum(p.nbytes for p in trainable(model).values()) if ranks.copies_gradients else 0,
        gathered=max((_gathered(each, ranks) for each in apart), default=0),
        references=sum(_held(each, ranks) for each in own),
        step=run_fake_step(step, sample, target),
        sample=sample,
        target=target,
        ranks=ranks,
        accumulates=accumulates or ranks.is_sharded,
        diverges="kl" in stats,
        optimizer=optimizer,
    )


def _held(model: nn.Module, ranks: Ranks) -> int:
    return sum(ranks.share(p) for p in model.parameters()) + sum(b.nbytes for b in model.buffers())


def _gathered(model: nn.Module, ranks: Ranks) -> int:
    """Bytes of whole weights and whole gradients beside the shares.

    The model's own unit stays gathered while the model works. Of the layers there are the one at work, the
    next, and the buffer that one arrives in; in the backward a layer's gradients and the buffer they leave
    in. A head of its own is gathered once, with its gradients alike.
    """
    seen: set[int] = set()
    layers, heads = ([_weigh(unit, seen) for unit in units] for units in units_of(model, ranks.units))
    rest = _weigh(model, seen)
    head = heads[0] if heads else _Unit(0, 0)
    whole, trained = max(each.whole for each in layers), max(each.trained for each in layers)
    if ranks.reshard:
        at_work = max(3 * whole + 2 * trained, whole + head.whole + 2 * head.trained)
    else:
        at_work = sum(each.whole for each in layers) + whole + head.whole + 2 * max(trained, head.trained)
    # the gradient of embeddings that are the head too is there from the first moment, else at the end
    return at_work + rest.whole + (0 if heads else rest.trained)


class _Unit(NamedTuple):
    whole: int  # bytes of all its weights
    trained: int  # bytes of those that are trained


def _weigh(unit: nn.Module, seen: set[int]) -> _Unit:
    """Weigh the weights of a unit that are not yet ``seen``, and add them to those."""
    fresh = [p for p in unit.parameters() if id(p) not in seen]
    seen |= {id(p) for p in fresh}
    return _Unit(sum(p.nbytes for p in fresh), sum(p.nbytes for p in fresh if p.requires_grad))
