"""What the policy is compared with: one method, ``(batch, stats) -> SeqLogps`` outside the graph."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from prefopt.errors import CorruptError, ModelError, RecipeError
from prefopt.policy import Policy, RowStates
from prefopt.policy.wrappers import without_engine
from prefopt.reference.cache import LogpCache
from prefopt.types import OTHER_REFERENCES, PackedBatch, SeqLogps

Reduce = Callable[[Tensor], Tensor]
"""What is kept of a decoder layer's output at the scored rows, [M, D]."""

Scored = tuple[SeqLogps, RowStates]


class Reference(Protocol):
    """Score the responses of a batch with the reference.

    ``is_start`` says whether the reference *is* the weights that training starts from, in which case
    the first step must see equal log-probs.
    """

    is_start: bool

    def __call__(self, batch: PackedBatch, *, stats: Collection[str] = ()) -> SeqLogps: ...


@runtime_checkable
class LiveReference(Reference, Protocol):
    """A reference with a model at hand, which can also hand over its hidden states; see ``Policy.with_rows``."""

    policy: Policy

    def with_rows(
        self, batch: PackedBatch, *, stats: Collection[str] = (), layers: Reduce | None = None
    ) -> Scored: ...


class FrozenReference:
    """Score with a model of its own, which nothing trains."""

    def __init__(self, policy: Policy, *, is_start: bool) -> None:
        self.policy = policy
        self.is_start = is_start
        policy.model.requires_grad_(False)
        policy.model.eval()

    @torch.no_grad()
    def __call__(self, batch: PackedBatch, *, stats: Collection[str] = ()) -> SeqLogps:
        assert not self.policy.model.training, "the reference was put in training mode"
        return self.policy(batch, stats=stats).detach()

    @torch.no_grad()
    def with_rows(
        self, batch: PackedBatch, *, stats: Collection[str] = (), layers: Reduce | None = None
    ) -> Scored:
        assert not self.policy.model.training, "the reference was put in training mode"
        return self.policy.with_rows(batch, stats=stats, layers=layers)


class MovingReference(FrozenReference):
    """Score with a copy of the policy that follows it: TR-DPO (Gorbatovski et al., 2024, arXiv 2404.09656).

    Args:
        policy: a copy of the policy at the start of training.
        every: optimizer steps between two updates.
        mix: share of the policy in an update; 1 replaces the copy.
    """

    def __init__(self, policy: Policy, *, every: int, mix: float) -> None:
        super().__init__(policy, is_start=True)
        self.every, self.mix = every, mix

    @torch.no_grad()
    def follow(self, trained: Mapping[str, nn.Parameter], done: int) -> None:
        """Move towards the policy if an update is due after ``done`` optimizer steps."""
        if done % self.every:
            return
        own = dict(self.policy.model.named_parameters())
        for name, parameter in trained.items():
            own[name].lerp_(parameter.to(own[name].dtype), self.mix)

    def state(self, trained: Iterable[str]) -> dict[str, Tensor]:
        """Return the weights that move, for a checkpoint."""
        own = dict(self.policy.model.named_parameters())
        return {name: own[name].detach().cpu().contiguous() for name in trained}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor], trained: Collection[str]) -> None:
        """Take over the weights of a checkpoint.

        Raises:
            CorruptError: they are not those of this model.
        """
        own = dict(self.policy.model.named_parameters())
        if state.keys() != set(trained) or any(state[n].shape != own[n].shape for n in state):
            raise CorruptError(
                "checkpoint: its moving reference does not have the weights of this model. Start anew."
            )
        for name, value in state.items():
            own[name].copy_(value)


class SeveralReferences:
    """Score with several references: the first one's log-probs, those of the others as statistics.

    The second one's are ``stats["reference_2"]``, and so on, as the transforms that combine them read it.
    """

    is_start = False

    def __init__(self, references: Sequence[Reference]) -> None:
        assert 2 <= len(references) <= 1 + len(OTHER_REFERENCES)
        self.references = tuple(references)

    def __call__(self, batch: PackedBatch, *, stats: Collection[str] = ()) -> SeqLogps:
        first, *others = self.references
        found = first(batch, stats=own_stats(stats))
        further = {name: other(batch).tokens for name, other in zip(OTHER_REFERENCES, others, strict=False)}
        return replace(found, stats={**found.stats, **further})


def own_stats(stats: Collection[str]) -> tuple[str, ...]:
    """Return the statistics that one reference is asked for: all but the log-probs of others."""
    return tuple(name for name in stats if name not in OTHER_REFERENCES)


def models_of(reference: Reference | None) -> Iterator[Policy]:
    """Yield the models that a reference keeps besides the policy."""
    if isinstance(reference, SeveralReferences):
        for member in reference.references:
            yield from models_of(member)
    elif isinstance(reference, FrozenReference):
        yield reference.policy


class SelfReference:
    """Score with the policy itself, before training has moved it."""

    is_start = True

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    @torch.no_grad()
    def __call__(self, batch: PackedBatch, *, stats: Collection[str] = ()) -> SeqLogps:
        with self.policy.bare():
            return self.policy(batch, stats=stats).detach()

    @torch.no_grad()
    def with_rows(
        self, batch: PackedBatch, *, stats: Collection[str] = (), layers: Reduce | None = None
    ) -> Scored:
        with self.policy.bare():
            return self.policy.with_rows(batch, stats=stats, layers=layers)


class AdapterOffReference:
    """Score with the policy's own weights, its adapters switched off.

    With a fresh LoRA, which adds nothing yet, the base weights are the start of training.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        is_start: bool,
    ) -> None:
        self.policy = policy
        self.is_start = is_start

    @torch.no_grad()
    def __call__(self, batch: PackedBatch, *, stats: Collection[str] = ()) -> SeqLogps:
        with self.policy.bare() as model, model.disable_adapter():  # type: ignore[operator]
            return self.policy(batch, stats=stats).detach()

    @torch.no_grad()
    def with_rows(
        self, batch: PackedBatch, *, stats: Collection[str] = (), layers: Reduce | None = None
    ) -> Scored:
        with self.policy.bare() as model, model.disable_adapter():  # type: ignore[operator]
            return self.policy.with_rows(batch, stats=stats, layers=layers)


class FrozenAdapterReference:
    """Score with the policy's base weights and a second, frozen adapter, the one training started from."""

    is_start = True

    def __init__(
        self,
        policy: Policy,
        adapter: str = "reference",
        trained: str = "default",
    ) -> None:
        self.policy = policy
        self.adapter = adapter
        self.trained = trained
        if adapter not in getattr(without_engine(policy.model), "peft_config", {}):
            raise ModelError(f"reference: the model has no adapter '{adapter}'. Load it before training.")

    @torch.no_grad()
    def __call__(self, batch: PackedBatch, *, stats: Collection[str] = ()) -> SeqLogps:
        with self.policy.bare() as model, self._switched(model):
            return self.policy(batch, stats=stats).detach()

    @torch.no_grad()
    def with_rows(
        self, batch: PackedBatch, *, stats: Collection[str] = (), layers: Reduce | None = None
    ) -> Scored:
        with self.policy.bare() as model, self._switched(model):
            return self.policy.with_rows(batch, stats=stats, layers=layers)

    @contextmanager
    def _switched(self, model: nn.Module) -> Iterator[None]:
        """Make the frozen adapter the active one, and put everything back even after an error."""
        # choosing an adapter also decides what is trainable, so those flags are put back one by one
        flags = [(p, p.requires_grad) for p in model.parameters()]
        try:
            model.set_adapter(self.adapter)  # type: ignore[operator]
            yield
        finally:
            model.set_adapter(self.trained)  # type: ignore[operator]
            for parameter, flag in flags:
                parameter.requires_grad_(flag)


class CachedReference:
    """Look the log-probs up in a cache that another reference filled in one pass."""

    def __init__(self, cache: LogpCache, *, is_start: bool, device: torch.device | str = "cpu") -> None:
        self.cache = cache
        self.is_start = is_start
        self.device = device

    def __call__(self, batch: PackedBatch, *, stats: Collection[str] = ()) -> SeqLogps:
        missing = set(stats) - set(self.cache.stats)
        assert not missing, f"the cache was filled without {missing}"
        return self.cache.get(batch, self.device)


def check_rows(loss: str, stats: Sequence[str], policy: Policy, reference: Reference | None) -> None:
    """Refuse a reference that cannot hand over what per-token statistics are made from.

    Args:
        loss: its name, for messages.
        stats: those of the loss that need the reference's hidden states.
        policy: the model to train.
        reference: what it is compared with.

    Raises:
        RecipeError: the reference has no model at hand or, for "kl", another vocabulary.
    """
    if not isinstance(reference, LiveReference):
        raise RecipeError(needs_live_reference(loss, stats))
    own, other = policy.vocabulary, reference.policy.vocabulary
    if "kl" in stats and own != other:
        raise RecipeError(
            f"reference: {loss} measures the KL divergence over the vocabulary, but the reference's head has "
            f"{other} tokens and the policy's {own}. Choose a reference with the policy's vocabulary."
        )


def needs_live_reference(loss: str, stats: Sequence[str]) -> str:
    """Say in one line why log-probs from a cache, or of several references, will not do."""
    return (
        f"reference: {loss} reads '{stats[0]}', which is made from the hidden states of one reference, and a cache "
        f"of log-probs holds none. Use initial, adapter_off or a model's path."
    )


def fill_cache(
    cache: LogpCache,
    reference: Reference,
    batches: Iterable[PackedBatch],
    progress: Callable[[int], None] = lambda tokens: None,
    *,
    skip_known: bool = True,
) -> None:
    """Score every batch once and keep what the reference says about its responses.

    Args:
        cache: filled in place.
        reference: scores the batches.
        batches: on the reference's device.
        progress: called with the packed tokens of every batch done.
        skip_known: leave out batches of which the cache holds everything. False where ranks score
            together, each with a share of the weights, so that none may leave one out alone.
    """
    for batch in batches:
        if not skip_known or not all(key in cache for key in batch.keys):
            cache.put(batch.keys, reference(batch, stats=cache.stats))
        progress(batch.num_tokens)
