"""The policy's own weights without its adapters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefopt.errors import ModelError
from prefopt.policy import Policy
from prefopt.policy.wrappers import without_engine
from prefopt.reference.base import LiveReference, check_adapter_alone, same_flags


class AdapterOffReference(LiveReference):
    """Score with the policy's own weights, its adapters switched off.

    With a fresh LoRA, which adds nothing yet, the base weights are the start of training.

    Raises:
        ModelError: the policy has no adapter, or trains other weights besides.
    """

    def __init__(self, policy: Policy, *, is_start: bool) -> None:
        self.policy = policy
        self.is_start = is_start
        if not hasattr(without_engine(policy.model), "peft_config"):
            raise ModelError(
                "reference: the model has no adapter that could be switched off. Give it one before, or take a "
                "FrozenReference."
            )
        check_adapter_alone(self)

    @contextmanager
    def scoring(self) -> Iterator[None]:
        with self.policy.evaluating(), same_flags(self.policy), self.policy.model.disable_adapter():  # type: ignore[operator]
            yield
