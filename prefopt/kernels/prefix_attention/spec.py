"""What the back-ends of ``tree_attention`` are told, and what they tell: the types that all of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from prefopt.kernels.footprint import Footprint
from prefopt.kernels.prefix_attention.footprint import AttentionCall
from prefopt.types import Segments

HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Rule:
    """Describe one attention layer: how scores are scaled, cut off and bounded.

    Args:
        scaling: multiplies the scores.
        window: a token sees at most this many tokens of its path, itself included; None: all.
        softcap: bounds the scaled scores by ``softcap * tanh(score / softcap)``; None: not at all.
    """

    scaling: float
    window: int | None = None
    softcap: float | None = None


@dataclass(frozen=True, slots=True)
class AttentionProblem:
    """Describe a call by what decides which back-ends can serve it."""

    dtype: torch.dtype
    width: int  # of queries and keys
    value_width: int
    has_softcap: bool = False
    has_sinks: bool = False
    gathered: float = 1.0  # keys that ``varlen`` gathers per token of the row


@dataclass(frozen=True, slots=True)
class Machine:
    """Describe a device and the torch that drives it."""

    device: str  # cpu, cuda, mps …
    capability: tuple[int, int] = (0, 0)
    is_rocm: bool = False
    gaps: tuple[tuple[str, str], ...] = ()  # back-ends that this torch lacks something for, and what

    def gap(self, name: str) -> str | None:
        """Say what the back-end ``name`` lacks, if anything."""
        return dict(self.gaps).get(name)


AttentionFunction = Callable[[Tensor, Tensor, Tensor, Tensor | None, Segments, Rule], Tensor]
"""query [1, Hq, T, d], key, value [1, Hkv, T, dv], sinks [Hq] or None, forest, rule -> [1, T, Hq, dv]."""


def _nothing(*_: object) -> None:
    """Name no reason against a back-end."""


@dataclass(frozen=True, slots=True)
class Backend:
    """One way to attend: all that the choice, the plan of memory and the log know of it.

    Args:
        name: as in ``model.attention`` and ``impl``.
        run: attends; gradients reach query, key, value and sinks.
        footprint: counts what a call holds on top of operands and result; None where that is no straight
            line in the tokens, so that memory is not planned.
        obstacle: says why it cannot serve a problem on a machine, as ``'name' {obstacle}``; None if it can.
        missing: says what it lacks in the torch that is installed, asked once for each GPU.
        reluctance: says why ``auto`` leaves alone what could serve.
        variant: names what serves behind it, for the log; empty if it is alone.
    """

    name: str
    run: AttentionFunction
    footprint: Callable[[AttentionCall], Footprint] | None
    obstacle: Callable[[AttentionProblem, Machine], str | None] = _nothing
    missing: Callable[[], str | None] = _nothing
    reluctance: Callable[[AttentionProblem], str | None] = _nothing
    variant: Callable[[], str] = str


def gpu_obstacle(machine: Machine, least: tuple[int, int]) -> str | None:
    """Say why ``machine`` is no NVIDIA GPU of at least the compute capability ``least``, if so."""
    if machine.device != "cuda":
        return f"runs on NVIDIA GPUs only, not on {machine.device}"
    if machine.is_rocm:
        return "runs on NVIDIA GPUs only, not under ROCm"
    if machine.capability < least:
        return "needs compute capability {}.{} but this GPU has {}.{}".format(*least, *machine.capability)
    return None
