"""The policy's base weights with the adapter that training started from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefopt.errors import ModelError
from prefopt.policy import Policy
from prefopt.policy.wrappers import without_engine
from prefopt.reference.base import LiveReference, check_adapter_alone, same_flags


class FrozenAdapterReference(LiveReference):
    """Score with the policy's base weights and a second, frozen adapter, the one training started from."""

    is_start = True

    def __init__(self, policy: Policy, adapter: str = "reference", trained: str = "default") -> None:
        self.policy = policy
        self.adapter = adapter
        self.trained = trained
        for name in (adapter, trained):
            if name not in getattr(without_engine(policy.model), "peft_config", {}):
                raise ModelError(f"reference: the model has no adapter '{name}'. Load it before training.")
        check_adapter_alone(self)

    @contextmanager
    def scoring(self) -> Iterator[None]:
        with self.policy.evaluating(), same_flags(self.policy):
            model = self.policy.model
            try:
                model.set_adapter(self.adapter)  # type: ignore[operator]
                yield
            finally:
                model.set_adapter(self.trained)  # type: ignore[operator]
