"""AdamW with its two moments in 8 bits, by bitsandbytes."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

from prefopt.optim.kind import Group, Kept, Kind

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PACKAGE = "bitsandbytes"
SMALLEST, BLOCK, LEVELS = 4096, 256, 256
"""Numbers that a parameter needs for 8 bits, that share a scale, and that 8 bits can tell apart."""


def adamw_8bit(
    groups: list[Group],
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> torch.optim.Optimizer:
    """Build AdamW whose moments are rounded to 8 bits, block by block.

    Parameters of fewer than 4096 numbers keep theirs in float32.

    Args:
        groups: of parameters.
        lr: learning rate.
        betas: decay rates of the first and second moment.
        eps: added to the root of the second moment.

    Source:
        Dettmers, Lewis, Shleifer and Zettlemoyer, "8-bit Optimizers via Block-wise Quantization", 2021,
        arXiv 2110.02861.
    """
    import bitsandbytes

    made: Any = bitsandbytes.optim.AdamW8bit(groups, lr=lr, betas=betas, eps=eps, min_8bit_size=SMALLEST)
    return cast("torch.optim.Optimizer", made)


def keeps(parameter: Tensor) -> Kept:
    """Two moments, in bytes with a scale for each block and a table of what bytes mean; small ones in float32."""
    import torch

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    if parameter.numel() < SMALLEST:
        return {"step": 0, "state1": empty(*parameter.shape), "state2": empty(*parameter.shape)}
    moment, scales = empty(*parameter.shape, dtype=torch.uint8), empty(-(-parameter.numel() // BLOCK))
    return {
        "step": 0,
        "state1": moment,
        "qmap1": empty(LEVELS),
        "absmax1": scales,
        "state2": moment,
        "qmap2": empty(LEVELS),
        "absmax2": scales,
    }


def refuse(device: torch.device, is_sharded: bool) -> str | None:
    """Ask for whole weights, bitsandbytes and an NVIDIA GPU."""
    if is_sharded:
        return "rounds blocks of whole weights, which FSDP2 spreads over ranks. Launch data parallel training"
    if find_spec(PACKAGE) is None:
        return (
            "needs bitsandbytes, which is not installed. Install it with pip install 'prefopt[quantization]'"
        )
    if device.type != "cuda":
        return f"needs an NVIDIA GPU, but this run is on {device.type}. Take adamw or adafactor"
    return None


KIND = Kind("8-bit AdamW", adamw_8bit, keeps, refuse, shared=("qmap1", "qmap2"))
