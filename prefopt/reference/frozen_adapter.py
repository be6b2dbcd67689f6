"""The policy's base weights with the adapter that training started from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefopt.errors import ModelError
from prefopt.policy import Policy
from prefopt.policy.wrappers import without_engine
from prefopt.reference.base import LiveReference


class FrozenAdapterReference(LiveReference):
    """Score with the policy's base weights and a second, frozen adapter, the one training started from."""

    is_start = True

    def __init__(self, policy: Policy, adapter: str = "reference", trained: str = "default") -> None:
        self.policy = policy
        self.adapter = adapter
        self.trained = trained
        if adapter not in getattr(without_engine(policy.model), "peft_config", {}):
            raise ModelError(f"reference: the model has no adapter '{adapter}'. Load it before training.")

    @contextmanager
    def scoring(self) -> Iterator[None]:
        with self.policy.evaluating():
            model = self.policy.model
            # choosing an adapter also decides what is trainable, so those flags are put back one by one
            flags = [(p, p.requires_grad) for p in model.parameters()]
            try:
                model.set_adapter(self.adapter)  # type: ignore[operator]
                yield
            finally:
                model.set_adapter(self.trained)  # type: ignore[operator]
                for parameter, flag in flags:
                    parameter.requires_grad_(flag)
