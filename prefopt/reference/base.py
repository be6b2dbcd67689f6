"""What every reference can do, and what those with a model at hand can do besides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from prefopt.errors import ModelError, RecipeError
from prefopt.policy import Policy, RowStates
from prefopt.types import PackedBatch, SeqLogps


class Reference(ABC):
    """Score the responses of a batch with what the policy is compared with.

    A kind that stays as it is and keeps no model of its own says nothing but how it scores.

    Attributes:
        is_start: the reference *is* the weights that training starts from, so that the first step must see
            equal log-probs.
        moves: it changes while the policy trains, so that a checkpoint holds its ``state``.
    """

    is_start: bool
    moves: bool = False

    @abstractmethod
    def __call__(self, batch: PackedBatch, *, stats: Collection[str] = ()) -> SeqLogps:
        """Return the log-prob of every scored token outside the graph, and the statistics asked for."""

    def models(self) -> Iterator[Policy]:
        """Yield the models that it keeps beside the policy."""
        yield from ()

    def follow(self, trained: Mapping[str, nn.Parameter], done: int) -> None:  # noqa: B027  most stay
        """Move with the policy, if that is due.

        Args:
            trained: the policy's trained parameters by name.
            done: optimizer steps behind them.
        """

    def check_stands(self, done: int) -> None:  # noqa: B027  most stay
        """Refuse to go on from where this has not been moved to.

        Args:
            done: optimizer steps that the policy has behind it.

        Raises:
            RecipeError: it still stands where training started.
        """

    def state(self) -> dict[str, Tensor]:
        """Return the weights that move, on the host, for a checkpoint."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what ``state`` returned.

        Raises:
            CorruptError: it is not of this reference.
        """
        assert not state, "a reference that does not move has no state"


class LiveReference(Reference):
    """A reference with a model at hand, which can also hand over its hidden states.

    Attributes:
        policy: scores as this reference while the block of ``scoring`` lasts.
    """

    policy: Policy

    @abstractmethod
    def scoring(self) -> AbstractContextManager[None]:
        """Let ``policy`` score as this reference for the block, and put everything back after it."""

    @torch.no_grad()
    def __call__(self, batch: PackedBatch, *, stats: Collection[str] = ()) -> SeqLogps:
        with self.scoring():
            return self.policy(batch, stats=stats).detach()

    @torch.no_grad()
    def with_rows(
        self,
        batch: PackedBatch,
        *,
        stats: Collection[str] = (),
        layers: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[SeqLogps, RowStates]:
        """Score a batch and return what made the logits of every scored row; see ``Policy.with_rows``."""
        with self.scoring():
            return self.policy.with_rows(batch, stats=stats, layers=layers)


@contextmanager
def same_flags(policy: Policy) -> Iterator[None]:
    """Put back for every parameter, after the block, whether it is trained; switching adapters decides that, too."""
    flags = [(parameter, parameter.requires_grad) for parameter in policy.model.parameters()]
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def check_adapter_alone(reference: LiveReference) -> None:
    """Refuse a policy that trains more than the adapter that ``reference`` scores without.

    Raises:
        ModelError: names what is trained besides, with which the reference would move unnoticed.
    """
    trained = {
        name for name, parameter in reference.policy.model.named_parameters() if parameter.requires_grad
    }
    with reference.scoring():
        # a switched off adapter is not trained
        flags = [(name, p.requires_grad) for name, p in reference.policy.model.named_parameters()]
    shared = [name for name, flag in flags if flag and name in trained]
    if shared:
        raise ModelError(
            f"reference: '{shared[0]}' is trained beside the adapter ({len(shared)} such tensors), so the policy "
            f"without its adapter moves as well. Freeze it, or take a FrozenReference with a model of its own."
        )


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
