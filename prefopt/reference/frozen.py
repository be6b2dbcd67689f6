"""A model of its own that nothing trains: the start of training once more, or any other model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

from prefopt.policy import Policy
from prefopt.reference.base import LiveReference


class FrozenReference(LiveReference):
    """Score with a model of its own, which nothing trains."""

    def __init__(self, policy: Policy, *, is_start: bool) -> None:
        self.policy = policy
        self.is_start = is_start
        policy.model.requires_grad_(False)
        policy.model.eval()

    def scoring(self) -> AbstractContextManager[None]:
        # whoever put it in training mode meant the policy: a reference never drops
        return self.policy.evaluating() if self.policy.model.training else nullcontext()

    def models(self) -> Iterator[Policy]:
        yield self.policy
