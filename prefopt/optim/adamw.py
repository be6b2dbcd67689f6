"""AdamW: two moments for every weight, and decay apart from the gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefopt.optim.kind import Group, Kept, Kind

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def adamw(
    groups: list[Group],
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> torch.optim.AdamW:
    """Build torch's fused AdamW, which reads nothing back from the device.

    Args:
        groups: of parameters.
        lr: learning rate.
        betas: decay rates of the first and second moment.
        eps: added to the root of the second moment.

    Source:
        Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2017, arXiv 1711.05101.
    """
    import torch

    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)


def keeps(parameter: Tensor) -> Kept:
    """Two moments like the parameter, and a step counter beside them."""
    import torch

    moment = torch.empty_like(parameter, device="meta")
    return {"exp_avg": moment, "exp_avg_sq": moment, "step": torch.empty((), device="meta")}


KIND = Kind("AdamW", adamw, keeps)
