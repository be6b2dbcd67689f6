"""What one optimizer of the table is made of, and how weights are parted into its groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Group = dict[str, Any]
"""Parameters that are updated alike, with ``weight_decay`` and ``share``, their part of the learning rate."""
Kept = Mapping[str, "Tensor | int"]
"""State of one parameter: field -> a number, or a tensor: on the host if it stays there, else on the meta device."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One optimizer.

    Args:
        label: what people call it.
        build: makes it from groups and a learning rate; further keyword arguments are its settings.
        keeps: says what it keeps for a parameter.
        refuse: returns why it cannot run on a device, with weights spread over ranks or not; None if it can.
        takes: picks the trained parameters that it updates itself, the others are AdamW's; None picks all.
        shared: fields that are one tensor for all parameters.
        describe: says what it does with the parameters of a model; None: the label says it.
    """

    label: str
    build: Callable[..., torch.optim.Optimizer]
    keeps: Callable[[Tensor], Kept]
    refuse: Callable[[torch.device, bool], str | None] = lambda device, is_sharded: None
    takes: Callable[[nn.Module], Mapping[str, nn.Parameter]] | None = None
    shared: Collection[str] = ()
    describe: Callable[[nn.Module], str] | None = None


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes, by name, each once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def decayed(parameters: Iterable[nn.Parameter], weight_decay: float, share: float) -> list[Group]:
    """Part parameters by whether they decay: matrices do, norms and biases do not."""
    found = list(parameters)
    groups = [
        {"params": [p for p in found if p.dim() >= 2], "weight_decay": weight_decay, "share": share},
        {"params": [p for p in found if p.dim() < 2], "weight_decay": 0.0, "share": share},
    ]
    return [group for group in groups if group["params"]]


def total_size(parameters: Iterable[nn.Parameter]) -> int:
    """Return how many numbers ``parameters`` hold; of 4-bit weights, two to a byte, all of them."""
    shapes = (getattr(getattr(p, "quant_state", p), "shape", p.shape) for p in parameters)
    return sum(math.prod(shape) for shape in shapes)
