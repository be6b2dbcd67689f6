"""Meta tensors in place of those on a GPU, watched for whatever would make the host wait.

They hold no numbers, so what needs one on the host fails by itself; copies between host and device, and
shapes that follow from numbers, are seen by ``Watch``.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from prefopt import ragged
from prefopt.data.packs import steps

if TYPE_CHECKING:
    from typing_extensions import Self

META = torch.device("meta")
aten = torch.ops.aten


class Watch(TorchDispatchMode):
    """Name every operation that would make the host wait for a GPU, and count the copies that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.copies = 0
        self._lists = _Lists(self.waits)

    def __enter__(self) -> Self:
        self._lists.__enter__()
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._lists.__exit__(*error)

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _moves(op, args, kwargs):
            is_free = kwargs.get("non_blocking") and hasattr(args[0], "was_pinned")
            self.copies += bool(is_free)
            if not is_free:
                self.waits.append(str(op))
        elif _reads(op, args, kwargs):
            self.waits.append(str(op))
        return op(*args, **kwargs)


class _Lists(TorchFunctionMode):
    """Name every tensor that is made on the device from a list: no operation shows its copy."""

    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        makers = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
        if function in makers and made is not args[0] and made.device == META:
            self.waits.append(function.__name__)
        return made


def _moves(op: Any, args: Any, kwargs: Any) -> bool:
    """Tell whether an operation copies between host and device."""
    if op is aten._to_copy.default:
        return torch.device(kwargs.get("device") or args[0].device) != args[0].device
    return op is aten.copy_.default and args[0].device != args[1].device


def _reads(op: Any, args: Any, kwargs: Any) -> bool:
    """Tell whether the host needs a number from the device before it can go on."""
    if not any(isinstance(a, Tensor) and a.device == META for a in args):
        return False
    if op is aten.segment_reduce.default:
        return not kwargs.get("unsafe")  # otherwise it checks that the lengths add up
    if op is aten.repeat_interleave.Tensor:
        return kwargs.get("output_size") is None
    if op is aten.index.Tensor:
        return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    by_value = (aten.nonzero, aten.masked_select, aten.equal, aten._local_scalar_dense)
    return op.overloadpacket in by_value


def _pin(self: Tensor) -> Tensor:
    twin = self.clone()
    twin.was_pinned = True
    return twin


def pose_as_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let meta tensors take the ways that GPU tensors take."""
    monkeypatch.setattr(ragged, "ASYNCHRONOUS", {"meta"})
    monkeypatch.setattr(steps, "ASYNCHRONOUS", {"meta"})
    monkeypatch.setattr(Tensor, "pin_memory", _pin)
    # meta tensors have no autocast
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *args: False)
    # nor a list entry beside the devices that fused AdamW is written for, though the op takes them
    adam = sys.modules["torch.optim.adam"]
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *args, **kwargs: None)
