"""Which back-end serves a call of ``token_logps``, and why one cannot."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from prefopt.errors import RecipeError
from prefopt.kernels.linear_logp import chunked
from prefopt.kernels.linear_logp.naive import naive_logps
from prefopt.kernels.linear_logp.spec import HeadInputs, Spec

LOGP_IMPLS = ("naive", "chunked", "fused")

LogpFunction = Callable[[HeadInputs, Tensor, Spec], tuple[Tensor, ...]]


def which_impl(hidden: Tensor, weight: Tensor, impl: str = "auto") -> str:
    """Return the back-end that ``token_logps`` takes for these tensors: naive, chunked or fused.

    ``auto`` is fused on NVIDIA GPUs of compute capability 8.0 and newer where Triton is installed, for
    plain weights in half or single precision; everything else is chunked.

    Raises:
        RecipeError: no such back-end.
        ValueError: ``impl="fused"`` where it cannot run.
    """
    if impl == "auto":
        return "fused" if hidden.is_cuda and _obstacle(hidden, weight) is None else "chunked"
    if impl not in LOGP_IMPLS:
        raise RecipeError(
            f"token_logps: there is no impl='{impl}'. Use 'auto' or one of {', '.join(LOGP_IMPLS)}."
        )
    obstacle = _obstacle(hidden, weight) if impl == "fused" else None
    if obstacle is not None:
        raise ValueError(f"token_logps: impl='fused' {obstacle}. Use impl='auto' or 'chunked'.")
    return impl


def backend_of(impl: str) -> LogpFunction:
    """Return the function behind a back-end's name."""
    if impl == "fused":
        function: LogpFunction = _fused_op().fused_logps
        return function
    return naive_logps if impl == "naive" else chunked.chunked_logps


def mode_of(impl: str, inputs: HeadInputs, stats: Sequence[str], mode: str, softcap: float | None) -> str:
    """Return how a back-end will get gradients, resolving ``auto``.

    Raises:
        ValueError: a mode that cannot serve these inputs.
    """
    if impl == "fused":
        chosen: str = _fused_op().fused_mode(inputs, stats, mode, softcap)
        return chosen
    return chunked.chunked_mode(inputs, stats, mode)


def _obstacle(hidden: Tensor, weight: Tensor) -> str | None:
    """Say what keeps the fused kernels from serving these tensors, if anything does."""
    for name, part in (("hidden", hidden), ("weight", weight)):
        if part.dtype not in (torch.bfloat16, torch.float16, torch.float32):
            return f"computes in half or single precision but {name} is {part.dtype}"
    if type(weight) not in (Tensor, nn.Parameter):
        return f"needs a plain weight but got a {type(weight).__name__}"
    if not hidden.is_cuda and not (hidden.device.type == "cpu" and _is_interpreting()):
        return f"needs a GPU but hidden is on {hidden.device.type}"
    if torch.version.hip is not None:
        return "needs an NVIDIA GPU but this one is driven by ROCm"
    if not _has_triton():
        return "needs Triton, which is not installed"
    if hidden.is_cuda and torch.cuda.get_device_capability(hidden.device) < (8, 0):
        major, minor = torch.cuda.get_device_capability(hidden.device)
        return f"needs compute capability 8.0 but this GPU has {major}.{minor}"
    return None


def _is_interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _fused_op() -> Any:
    # imported late: the CPU's torch comes without Triton
    from prefopt.kernels.linear_logp import fused_op

    assert isinstance(fused_op, ModuleType)
    return fused_op
