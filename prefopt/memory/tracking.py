"""Tensors without memory, and a count of how many bytes of them would be alive.

Float32 takes 4 bytes a number. ``a`` of 100 numbers is made: 400 bytes are alive. ``b`` of 50: 600. ``a`` is
dropped and ``c`` of 10 is made: 200 + 40 = 240. A view makes nothing, and neither does work in place.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

FORWARD, REFERENCE, BACKWARD = "forward", "reference", "backward"
HEAD, REFERENCE_HEAD, HEAD_BACKWARD = "head", "reference head", "head backward"
"""Phases; the last three are single moments, at which a head's own memory comes on top."""


class Moment(NamedTuple):
    """How many bytes are alive when a tensor has just been made."""

    phase: str
    live: int  # finished gradients apart
    gradients: int  # finished


class MemoryTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the bytes of all tensors made within it that are still alive, and note every new height.

    Args:
        known: tensors that were there before, which do not count.
        phase: name of what happens first; set ``phase`` for what follows.
    """

    def __init__(self, known: Iterable[Tensor], phase: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phase = phase
        self.moments: list[Moment] = []
        self._live = self._gradients = 0
        self._held: dict[int, Any] = {_key(tensor): None for tensor in known}

    def note(self, phase: str) -> None:
        """Write down what is alive now."""
        self.moments.append(Moment(phase, self.passing, self._gradients))

    def finish(self, parameter: Tensor) -> None:
        """Take the gradient of ``parameter``, just finished, from what passes by to what stays."""
        assert parameter.grad is not None
        self._gradients += parameter.grad.untyped_storage().nbytes()

    @property
    def passing(self) -> int:
        """Bytes alive now, finished gradients apart."""
        return self._live - self._gradients

    def hold(self, size: int) -> None:
        """Count bytes of which no tensor is here to be seen, until as many are given back."""
        self._live += size

    def add_gradients(self, size: int) -> None:
        """Count finished gradients of which no tensor is here to be seen."""
        self._live += size
        self._gradients += size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = _REPLACED.get(func, func)(*args, **(kwargs or {}))
        for each in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(each, Tensor):
                self._meet(each)
        return out

    def _meet(self, tensor: Tensor) -> None:
        key = _key(tensor)
        if key in self._held:
            return
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        self._held[key] = weakref.ref(storage, partial(self._release, key, size))
        self._live += size
        self.note(self.phase)

    def _release(self, key: int, size: int, _: object) -> None:
        del self._held[key]
        self._live -= size


def _value(tensor: Tensor) -> Any:
    """Return a number where Python asks for one; without a value a condition does not hold, a count is 1."""
    if isinstance(tensor, FakeTensor):
        return tensor.dtype != torch.bool
    return torch.ops.aten._local_scalar_dense.default(tensor)


def _grouped_mm(a: Tensor, b: Tensor, *rest: Any, **settings: Any) -> Tensor:
    """Multiply groups of rows; without memory, torch knows the result's shape for one dtype alone."""
    product = torch.ops.aten._grouped_mm.default
    if not isinstance(a, FakeTensor) or a.dtype == torch.bfloat16:
        found: Tensor = product(a, b, *rest, **settings)
        return found
    like: Tensor = product(a.bfloat16(), b.bfloat16(), *rest, **settings)
    return torch.empty_strided(like.shape, like.stride(), dtype=a.dtype, device=a.device)


_REPLACED: dict[Any, Any] = {
    torch.ops.aten._local_scalar_dense.default: _value,
    torch.ops.aten._grouped_mm.default: _grouped_mm,
}
"""Operators that cannot do without numbers, or refuse what they can do, and what is called instead."""


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def weightless(model: nn.Module) -> nn.Module:
    """Copy a model, its parameters and buffers empty ones on the CPU; call it where tensors have no memory."""
    copies: dict[int, Any] = {}
    for parameter in model.parameters():
        copies[id(parameter)] = nn.Parameter(_empty(parameter), requires_grad=parameter.requires_grad)
    for module in model.modules():
        for value in (*module.buffers(recurse=False), *vars(module).values()):
            if isinstance(value, Tensor):
                copies.setdefault(id(value), _empty(value))
    return copy.deepcopy(model, copies)


def _empty(like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device="cpu")
