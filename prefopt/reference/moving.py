"""A copy of the policy that follows it while it trains."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prefopt.errors import CorruptError, RecipeError
from prefopt.policy import Policy
from prefopt.policy.wrappers import without_engine
from prefopt.reference.frozen import FrozenReference


class MovingReference(FrozenReference):
    """Score with a copy of the policy that follows it: TR-DPO (Gorbatovski et al., 2024, arXiv 2404.09656).

    Args:
        policy: a copy of the policy at the start of training, with the same parameters to train.
        every: optimizer steps between two updates.
        mix: share of the policy in an update; 1 replaces the copy.

    Raises:
        RecipeError: it would never move, or beyond the policy, or by a share of an adapter.
    """

    moves = True

    def __init__(self, policy: Policy, *, every: int, mix: float) -> None:
        if every < 1 or not 0 < mix <= 1:
            raise RecipeError(
                f"reference: a reference cannot move by {mix:g} every {every} steps. Give mix above 0 and up to 1, and "
                f"every of at least 1."
            )
        if mix < 1 and hasattr(without_engine(policy.model), "peft_config"):
            raise RecipeError(
                f"reference: mix {mix:g} would average the factors of an adapter, which is not the average of what "
                f"they add. Give mix=1, or train all weights."
            )
        self.every, self.mix = every, mix
        self._has_followed = False
        self._moving = {name: p for name, p in policy.model.named_parameters() if p.requires_grad}
        super().__init__(policy, is_start=True)

    @torch.no_grad()
    def follow(self, trained: Mapping[str, nn.Parameter], done: int) -> None:
        self._has_followed = True
        if done % self.every:
            return
        self._check_copy(trained)
        for name, parameter in trained.items():
            own = self._moving[name]
            own.lerp_(parameter.to(own.dtype), self.mix)

    def _check_copy(self, trained: Mapping[str, nn.Parameter]) -> None:
        odd = [
            name
            for name in (*trained, *self._moving)
            if name not in trained
            or name not in self._moving
            or trained[name].shape != self._moving[name].shape
        ]
        if odd:
            raise RecipeError(
                f"reference: '{odd[0]}' is trained in the policy or moves in the reference, but not both alike, so the "
                f"one cannot follow the other. Make the reference of a copy of the policy with the same requires_grad."
            )

    def check_stands(self, done: int) -> None:
        if done and not self._has_followed:
            raise RecipeError(
                f"reference: it stands where training started, but the policy has {done} steps behind it. Hand "
                f"load_state() the state() that it had then, or its own to go on from where it stands."
            )

    def state(self) -> dict[str, Tensor]:
        return {name: own.detach().cpu().contiguous() for name, own in self._moving.items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        own = self._moving
        if state.keys() != own.keys() or any(state[name].shape != own[name].shape for name in state):
            raise CorruptError(
                "checkpoint: its moving reference does not have the weights of this model. Start anew."
            )
        for name, value in state.items():
            own[name].copy_(value)
        self._has_followed = True
