"""The policy's own weights without its adapters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefopt.policy import Policy
from prefopt.reference.base import LiveReference


class AdapterOffReference(LiveReference):
    """Score with the policy's own weights, its adapters switched off.

    With a fresh LoRA, which adds nothing yet, the base weights are the start of training.
    """

    def __init__(self, policy: Policy, *, is_start: bool) -> None:
        self.policy = policy
        self.is_start = is_start

    @contextmanager
    def scoring(self) -> Iterator[None]:
        with self.policy.evaluating(), self.policy.model.disable_adapter():  # type: ignore[operator]
            yield
