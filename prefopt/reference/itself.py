"""The policy itself before training has moved it, by which a cache is filled without a second model."""

from __future__ import annotations

from contextlib import AbstractContextManager

from prefopt.policy import Policy
from prefopt.reference.base import LiveReference


class SelfReference(LiveReference):
    """Score with the policy itself, before training has moved it."""

    is_start = True

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def scoring(self) -> AbstractContextManager[None]:
        return self.policy.evaluating()
