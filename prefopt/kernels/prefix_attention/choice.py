"""Which back-end serves a call of ``tree_attention``, and why another cannot."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from prefopt.errors import RecipeError
from prefopt.kernels.footprint import Footprint
from prefopt.kernels.prefix_attention.backends import BACKENDS, ELSEWHERE, FASTEST_ON_GPUS
from prefopt.kernels.prefix_attention.footprint import AttentionCall
from prefopt.kernels.prefix_attention.layout import plan_calls
from prefopt.kernels.prefix_attention.spec import AttentionProblem, Machine
from prefopt.types import Segments


class BackendChoice(NamedTuple):
    """A back-end, and what kept ``auto`` from a better one."""

    name: str
    why: str = ""


def choose_backend(problem: AttentionProblem, machine: Machine) -> BackendChoice:
    """Return the fastest back-end that is exact for ``problem`` on ``machine``.

    On GPUs that is ``varlen``; where it cannot serve, or would copy too many keys, ``flex``; where that
    cannot either, ``segments``. Elsewhere it is ``segments``.
    """
    if machine.device != "cuda":
        return BackendChoice(ELSEWHERE)
    *faster, last = FASTEST_ON_GPUS
    reasons: list[str] = []
    for name in faster:
        why = obstacle(name, problem, machine) or BACKENDS[name].reluctance(problem)
        if why is None:
            return BackendChoice(name, ", ".join(reasons))
        reasons.append(f"{name} {why}")
    return BackendChoice(last, ", ".join(reasons))


def resolve_backend(
    impl: str, problem: AttentionProblem, machine: Machine, place: str = "tree_attention: impl"
) -> BackendChoice:
    """Return the back-end that ``impl`` stands for: itself, or the choice of ``auto``.

    Raises:
        RecipeError: there is none of that name, or it cannot serve ``problem`` on ``machine``.
    """
    if impl == "auto":
        return choose_backend(problem, machine)
    if impl not in BACKENDS:
        raise RecipeError(f"{place} '{impl}' does not exist. Use 'auto' or one of {', '.join(BACKENDS)}.")
    why = obstacle(impl, problem, machine)
    if why is not None:
        raise RecipeError(f"{place} '{impl}' {why}. Use 'auto'.")
    return BackendChoice(impl)


def obstacle(name: str, problem: AttentionProblem, machine: Machine) -> str | None:
    """Say what keeps the back-end ``name`` from serving ``problem`` on ``machine``, if anything does."""
    return BACKENDS[name].obstacle(problem, machine)


def check_planned(impl: str, place: str = "tree_attention: impl") -> None:
    """Refuse a back-end that does not say how much memory it takes; ``auto`` takes none of those.

    Raises:
        RecipeError: it does not say.
    """
    if impl in BACKENDS and BACKENDS[impl].footprint is None:
        raise RecipeError(f"{place} the memory of '{impl}' is not planned. Use 'auto'.")


def footprint_of(name: str, call: AttentionCall, place: str = "tree_attention: impl") -> Footprint:
    """Return what one layer's call holds on top of its operands and its result.

    Raises:
        RecipeError: the memory of this back-end is not planned.
    """
    check_planned(name, place)
    count = BACKENDS[name].footprint
    assert count is not None
    return count(call)


def problem_of(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    *,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> AttentionProblem:
    """Describe a call of ``tree_attention``; the arguments are its own."""
    # the CPU never gathers, so it need not know
    calls = plan_calls(segments, window, 0) if query.is_cuda else ()
    gathered = sum(call.num_keys for call in calls)
    return AttentionProblem(
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
    missing = {name: each.missing() for name, each in BACKENDS.items()}
    return Machine(
        "cuda",
        torch.cuda.get_device_capability(device),
        torch.version.hip is not None,
        tuple((name, what) for name, what in missing.items() if what is not None),
    )
