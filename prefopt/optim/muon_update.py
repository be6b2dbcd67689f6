"""The optimizer of ``muon``: one step of Newton and Schulz's iteration for each hidden matrix."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from prefopt.engine.sharding import is_spread, local, spread_like, whole
from prefopt.optim.adamw import adamw
from prefopt.optim.kind import Group

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 5
SMALLEST_NORM = 1e-7
RMS = 0.2
"""Root mean square of AdamW's usual update, which Muon's is scaled to, so that both take one learning rate."""


class Muon(torch.optim.Optimizer):
    """Update some groups by Muon and the others by AdamW, as one optimizer.

    Each rank orthogonalises whole matrices: of weights that are spread over ranks the update is gathered, one
    matrix at a time.

    Args:
        matrices: groups whose parameters have two dimensions.
        others: groups for AdamW.
        lr: learning rate of both.
        momentum: decay rate of the averaged gradients, in Nesterov's form.
        betas: of AdamW.
        eps: of AdamW.

    Source:
        Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024,
        https://kellerjordan.github.io/posts/muon; the scale by shape is that of Liu et al., "Muon is Scalable for
        LLM Training", 2025, arXiv 2502.16982, with which AdamW's learning rate and weight decay can be kept.
        The same as ``torch.optim.Muon`` with ``adjust_lr_fn="match_rms_adamw"``.
    """

    def __init__(
        self,
        matrices: list[Group],
        others: list[Group],
        *,
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        marked = [{**group, "momentum": momentum} for group in matrices]
        self._adamw = adamw(others, lr=lr, betas=betas, eps=eps) if others else None
        super().__init__([*marked, *(self._adamw.param_groups if self._adamw else ())], {"lr": lr})
        self._share_state()

    def _share_state(self) -> None:
        """Let AdamW work on this optimizer's own groups and state."""
        if self._adamw is not None:
            self._adamw.param_groups = [group for group in self.param_groups if "momentum" not in group]
            self._adamw.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""
        super().load_state_dict(state_dict)
        self._share_state()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move every parameter that has a gradient; returns what ``closure`` does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if "momentum" in group:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._move(parameter, group)
        if self._adamw is not None:
            self._adamw.step()
        return loss

    def _move(self, parameter: nn.Parameter, group: Group) -> None:
        state, gradient, momentum = self.state[parameter], parameter.grad, group["momentum"]
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient, memory_format=torch.preserve_format)
        average = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        direction = orthogonalize(whole(gradient.lerp(average, momentum)))
        if is_spread(parameter):
            direction = local(spread_like(direction, parameter))
        scale = RMS * math.sqrt(max(parameter.shape))
        own = local(parameter)
        own.mul_(1 - group["lr"] * group["weight_decay"])
        own.add_(direction, alpha=-group["lr"] * scale)


def orthogonalize(matrix: Tensor) -> Tensor:
    """Push all singular values of a matrix [A, B] to about 1 by Newton and Schulz's iteration -> bfloat16 [A, B].

    The coefficients are steep at zero rather than exact at one: values end up between 0.7 and 1.2.
    """
    a, b, c = COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(torch.bfloat16, copy=True)
    x = x.T if is_tall else x
    x.div_(x.norm().clamp(min=SMALLEST_NORM))
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x
