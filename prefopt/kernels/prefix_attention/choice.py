"""Which back-end serves a call of ``tree_attention``, and why another cannot."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex

from prefopt.errors import RecipeError
from prefopt.kernels.prefix_attention import flash_op
from prefopt.kernels.prefix_attention.layout import plan_calls
from prefopt.types import Segments

IMPLS = ("segments", "dense", "varlen", "flex")
HALF = (torch.bfloat16, torch.float16)
WIDEST = 256
"""Head size up to which flash attention goes."""
MOST_GATHERED = 8
"""Gathered keys per token of the row up to which ``auto`` gathers them.

A prompt with two answers takes at most 2; copying 8 rows for one, forward and backward, is a few per cent of
the attention to them. That is counted, not timed.
"""


class Choice(NamedTuple):
    """A back-end, and what kept ``auto`` from a better one."""

    name: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
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
    flash_gap: str | None = None  # what keeps torch's flash attention from being used
    flex_gap: str | None = None  # what keeps FlexAttention from being used


def choose(problem: Problem, machine: Machine) -> Choice:
    """Return the fastest back-end that is exact for ``problem`` on ``machine``.

    On GPUs that is ``varlen``; where it cannot serve, or would copy too many keys, ``flex``; where that
    cannot either, ``segments``. Elsewhere it is ``segments``.
    """
    if machine.device != "cuda":
        return Choice("segments")
    why = obstacle("varlen", problem, machine)
    if why is None and problem.gathered > MOST_GATHERED:
        why = f"would copy {problem.gathered:.0f} keys per token"
    if why is None:
        return Choice("varlen")
    also = obstacle("flex", problem, machine)
    return (
        Choice("flex", f"varlen {why}") if also is None else Choice("segments", f"varlen {why}, flex {also}")
    )


def resolve(impl: str, problem: Problem, machine: Machine, place: str = "tree_attention: impl") -> Choice:
    """Return the back-end that ``impl`` stands for: itself, or the choice of ``auto``.

    Raises:
        RecipeError: there is none of that name, or it cannot serve ``problem`` on ``machine``.
    """
    if impl == "auto":
        return choose(problem, machine)
    if impl not in IMPLS:
        raise RecipeError(f"{place} '{impl}' does not exist. Use 'auto' or one of {', '.join(IMPLS)}.")
    why = obstacle(impl, problem, machine)
    if why is not None:
        raise RecipeError(f"{place} '{impl}' {why}. Use 'auto'.")
    return Choice(impl)


def obstacle(name: str, problem: Problem, machine: Machine) -> str | None:
    """Say what keeps the back-end ``name`` from serving ``problem`` on ``machine``, if anything does."""
    if name == "varlen":
        return _place(machine, (8, 0)) or machine.flash_gap or _not_for_flash(problem, machine)
    if name == "flex":
        least = (8, 0) if problem.dtype == torch.bfloat16 else (7, 0)
        return _place(machine, least) or machine.flex_gap or _not_for_flex(problem)
    return None


def _place(machine: Machine, least: tuple[int, int]) -> str | None:
    if machine.device != "cuda":
        return f"runs on NVIDIA GPUs only, not on {machine.device}"
    if machine.is_rocm:
        return "runs on NVIDIA GPUs only, not under ROCm"
    if machine.capability < least:
        return "needs compute capability {}.{} but this GPU has {}.{}".format(*least, *machine.capability)
    return None


def _not_for_flash(problem: Problem, machine: Machine) -> str | None:
    if problem.dtype not in HALF:
        return f"computes in half precision only, not in {_short(problem.dtype)}"
    if problem.has_softcap:
        return "has no softcap of scores"
    if problem.has_sinks:
        return "has no attention sinks"
    if problem.width != problem.value_width:
        return f"needs heads of one size but keys have {problem.width} and values {problem.value_width}"
    if problem.width % 8 or problem.width > WIDEST:
        return f"needs a head size that is a multiple of 8 up to {WIDEST}, not {problem.width}"
    # the backward of these widths asks for more shared memory than the other GPUs have
    if 192 < problem.width <= 224 and machine.capability not in ((8, 0), (9, 0), (10, 0)):
        return f"has no backward for a head size of {problem.width} on this GPU"
    return None


def _not_for_flex(problem: Problem) -> str | None:
    if problem.dtype not in (*HALF, torch.float32):
        return f"computes in half or single precision only, not in {_short(problem.dtype)}"
    narrowest = min(problem.width, problem.value_width)
    return f"needs a head size of 16 or more, not {narrowest}" if narrowest < 16 else None


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def problem_of(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    *,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Problem:
    """Describe a call of ``tree_attention``; the arguments are its own."""
    # the CPU never gathers, so it need not know
    calls = plan_calls(segments, window, 0) if query.is_cuda else ()
    gathered = sum(call.num_keys for call in calls)
    return Problem(
        common_dtype(query, key, value),
        query.shape[-1],
        value.shape[-1],
        softcap is not None,
        sinks is not None,
        max(1.0, gathered / query.shape[2]),
    )


def common_dtype(query: Tensor, key: Tensor, value: Tensor) -> torch.dtype:
    """Return the dtype to attend in; under autocast rotary embeddings leave queries wider than values."""
    device = query.device.type
    dtype = torch.promote_types(torch.promote_types(query.dtype, key.dtype), value.dtype)
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    return dtype


@cache
def machine_of(device: torch.device) -> Machine:
    """Look at a device and at what torch brings for it."""
    if device.type != "cuda":
        return Machine(device.type)
    return Machine(
        "cuda",
        torch.cuda.get_device_capability(device),
        torch.version.hip is not None,
        flash_op.missing(),
        _flex_gap(),
    )


def _flex_gap() -> str | None:
    if not hasattr(torch_flex, "AuxRequest"):
        return f"needs a newer FlexAttention than that of torch {torch.__version__}"
    if importlib.util.find_spec("triton") is None:
        return "needs Triton, which is not installed"
    return None
