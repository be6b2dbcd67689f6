"""Adafactor: the second moment of a matrix from the means of its rows and columns, and no first moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefopt.optim.kind import Group, Kept, Kind

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TINY = 1e-15
"""Bound of a gradient's root mean square from below; its square is the paper's 1e-30. torch's own default, the
machine epsilon, is 0.008 for bfloat16: above most gradients, which would hardly move the weights."""
SMALLEST_SCALE = 1e-3
"""What the root mean square of a weight counts as at least; the paper's."""


def adafactor(
    groups: list[Group],
    *,
    lr: float,
    beta2_decay: float = -0.8,
    clip_threshold: float = 1.0,
) -> torch.optim.Adafactor:
    """Build torch's Adafactor.

    The learning rate is relative: in step t a parameter moves by min(lr, 1 / sqrt(t)) times its own root mean
    square, or 0.001 if that is more. Weight decay takes lr alone. It reads two numbers per parameter back from
    the device in every step.

    Args:
        groups: of parameters; with three dimensions or more, the last two are factored.
        lr: largest relative step.
        beta2_decay: the second moment of step t is averaged with weight t ** beta2_decay for the newest.
        clip_threshold: largest root mean square of the update of a parameter, before it is scaled.

    Source:
        Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", 2018,
        arXiv 1804.04235, algorithms 4 and 5 with a learning rate in place of 0.01.
    """
    import torch

    eps = (TINY, SMALLEST_SCALE)
    return torch.optim.Adafactor(groups, lr=lr, beta2_decay=beta2_decay, d=clip_threshold, eps=eps)


def keeps(parameter: Tensor) -> Kept:
    """Means of rows and columns, or a whole second moment for vectors, and a step counter on the host."""
    import torch

    step = torch.empty(())
    if parameter.dim() < 2:
        return {"step": step, "variance": torch.empty_like(parameter, device="meta")}
    *outer, rows, columns = parameter.shape
    return {
        "step": step,
        "row_var": torch.empty((*outer, rows, 1), dtype=parameter.dtype, device="meta"),
        "col_var": torch.empty((*outer, 1, columns), dtype=parameter.dtype, device="meta"),
    }


def refuse(device: torch.device, is_sharded: bool) -> str | None:
    """Ask for whole weights."""
    if is_sharded:
        return "averages whole rows and columns, which FSDP2 spreads over ranks. Take adamw or muon"
    return None


KIND = Kind("Adafactor", adafactor, keeps, refuse)
