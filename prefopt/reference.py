"""What the policy is compared with: one method, ``(batch, stats) -> SeqLogps`` outside the graph."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from prefopt.cache import LogpCache
from prefopt.errors import ModelError, RecipeError
from prefopt.policy import Policy, RowStates
from prefopt.types import PackedBatch, SeqLogps

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


class SelfReference:
    """Score with the policy itself, before training has moved it."""

    is_start = True

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    @torch.no_grad()
    def __call__(self, batch: PackedBatch, *, stats: Collection[str] = ()) -> SeqLogps:
        with _scoring(self.policy, self.policy.model):
            return self.policy(batch, stats=stats).detach()

    @torch.no_grad()
    def with_rows(
        self, batch: PackedBatch, *, stats: Collection[str] = (), layers: Reduce | None = None
    ) -> Scored:
        with _scoring(self.policy, self.policy.model):
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
        unwrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    ) -> None:
        self.policy = policy
        self.is_start = is_start
        self._unwrap = unwrap

    @torch.no_grad()
    def __call__(self, batch: PackedBatch, *, stats: Collection[str] = ()) -> SeqLogps:
        model = self._unwrap(self.policy.model)
        with _scoring(self.policy, model), model.disable_adapter():  # type: ignore[operator]
            return self.policy(batch, stats=stats).detach()

    @torch.no_grad()
    def with_rows(
        self, batch: PackedBatch, *, stats: Collection[str] = (), layers: Reduce | None = None
    ) -> Scored:
        model = self._unwrap(self.policy.model)
        with _scoring(self.policy, model), model.disable_adapter():  # type: ignore[operator]
            return self.policy.with_rows(batch, stats=stats, layers=layers)


class FrozenAdapterReference:
    """Score with the policy's base weights and a second, frozen adapter, the one training started from."""

    is_start = True

    def __init__(
        self,
        policy: Policy,
        adapter: str = "reference",
        trained: str = "default",
        unwrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    ) -> None:
        self.policy = policy
        self.adapter = adapter
        self.trained = trained
        self._unwrap = unwrap
        if adapter not in getattr(unwrap(policy.model), "peft_config", {}):
            raise ModelError(f"reference: the model has no adapter '{adapter}'. Load it before training.")

    @torch.no_grad()
    def __call__(self, batch: PackedBatch, *, stats: Collection[str] = ()) -> SeqLogps:
        model = self._unwrap(self.policy.model)
        with _scoring(self.policy, model), self._switched(model):
            return self.policy(batch, stats=stats).detach()

    @torch.no_grad()
    def with_rows(
        self, batch: PackedBatch, *, stats: Collection[str] = (), layers: Reduce | None = None
    ) -> Scored:
        model = self._unwrap(self.policy.model)
        with _scoring(self.policy, model), self._switched(model):
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
    """Say in one line why a reference that only remembers log-probs will not do."""
    return (
        f"reference: {loss} reads '{stats[0]}', which is made from the reference's hidden states, and a cache of "
        f"log-probs holds none. Use initial, adapter_off or a model's path."
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


@contextmanager
def _scoring(policy: Policy, model: nn.Module) -> Iterator[None]:
    """Score with the bare model in evaluation mode, then restore wrapper and mode."""
    wrapped, was_training = policy.model, model.training
    policy.model = model
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
        policy.model = wrapped
