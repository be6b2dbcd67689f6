"""The state of an optimizer as plain tensors by parameter name, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prefopt.engine.sharding import gather, spread_like
from prefopt.errors import RecipeError, ResumeError
from prefopt.optim.kind import Kept

NUMBER, ON_HOST = "#", "@"
"""Ends of a field's name in a checkpoint: it was a plain number; it lay on the host, its parameter elsewhere."""


def state_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], *, keep: bool = True
) -> dict[str, Tensor]:
    """Return the optimizer's state as flat tensors on the host, named ``parameter/field``.

    Args:
        optimizer: its state may be spread over ranks; then all of them must call.
        parameters: what it trains, by name.
        keep: False returns nothing, for ranks that only take part in the gathering.

    Raises:
        RecipeError: the state holds what is neither tensor nor number.
    """
    flat: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        for field, value in optimizer.state.get(parameter, {}).items():
            key = f"{name}/{field}{_mark(value, parameter, field, optimizer)}"
            # a float of Python's has 64 bits, of which a tensor would keep 32
            dtype = torch.float64 if isinstance(value, float) else None
            whole = gather(torch.as_tensor(value, dtype=dtype), keep=keep)
            if whole is not None:
                flat[key] = whole
    return flat


def _mark(value: Any, parameter: nn.Parameter, field: str, optimizer: torch.optim.Optimizer) -> str:
    if isinstance(value, Tensor):
        return ON_HOST if value.device.type == "cpu" != parameter.device.type else ""
    if isinstance(value, (bool, int, float)):
        return NUMBER
    raise RecipeError(
        f"optim: {type(optimizer).__name__} keeps a {type(value).__name__} as '{field}', which a checkpoint cannot "
        f"hold. Keep tensors and numbers."
    )


def load_state_tensors(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    flat: Mapping[str, Tensor],
    kept: Mapping[str, Kept] | None = None,
) -> None:
    """Put back what ``state_tensors`` returned.

    Args:
        optimizer: fresh.
        parameters: what it trains, by name.
        flat: the state.
        kept: what it must hold for each parameter, from ``make.kept``; None where nobody can say.

    Raises:
        ResumeError: the state belongs to other parameters, or to another optimizer. A parameter without state is
            none: it never had a gradient, and starts when it gets one.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in flat.items():
        name, _, field = key.rpartition("/")
        found.setdefault(name, {})[field] = value
    for name in sorted(found):
        _check(name, found[name], parameters, kept)
    for name, fields in found.items():
        for field, value in fields.items():
            _put(optimizer.state[parameters[name]], field, value, parameters[name])


def _check(
    name: str,
    fields: Mapping[str, Tensor],
    parameters: Mapping[str, nn.Parameter],
    kept: Mapping[str, Kept] | None,
) -> None:
    is_right = name in parameters
    if is_right and kept is not None:
        got = {field.rstrip(NUMBER + ON_HOST): tuple(value.shape) for field, value in fields.items()}
        wanted = {field: tuple(getattr(value, "shape", ())) for field, value in kept[name].items()}
        is_right = got == wanted
    if not is_right:
        raise ResumeError(
            f"checkpoint: the optimizer state and the model disagree on parameter '{name}'. "
            f"Resume with the recipe that wrote the checkpoint."
        )


def _put(state: dict[str, Any], field: str, value: Tensor, parameter: nn.Parameter) -> None:
    if field.endswith(NUMBER):
        state[field.removesuffix(NUMBER)] = value.item()
    elif field.endswith(ON_HOST):
        state[field.removesuffix(ON_HOST)] = value.clone()
    else:
        # the step counter stays where fused AdamW keeps it, moments follow their parameter
        state[field] = spread_like(value, parameter)
