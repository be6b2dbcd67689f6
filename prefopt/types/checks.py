"""What the doors of log-probs ask of what is handed to them.

Types, shapes, devices and lengths lie on the host. Only what reads a mask or numbers waits for a device, and says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import index
from typing import Any

import torch
from torch import Tensor

from prefopt.ragged import Lengths

WITHOUT_FLOAT64 = ("mps",)
"""Devices that cannot hold float64."""


def wide(values: Tensor) -> Tensor:
    """Return ``values`` in the dtype that sums are taken in: float64 wherever the device has it."""
    return values.float() if values.device.type in WITHOUT_FLOAT64 else values.double()


def widened(values: Tensor) -> Tensor:
    """Return floats of 16 bits or fewer as float32, and all else as it is.

    Differences of such log-probs are rounded to some 3 digits, and a running sum of them stands still: in bfloat16
    at -256.
    """
    return values.float() if values.is_floating_point() and values.dtype.itemsize < 4 else values


def log_probs(values: Any, place: str) -> Tensor:
    """Return log-probs in at least float32; refuse what cannot be any."""
    if not isinstance(values, Tensor):
        raise ValueError(f"{place} is of type {type(values).__name__}. Give a tensor.")
    if not values.is_floating_point():
        raise ValueError(
            f"{place} has dtype {str(values.dtype).removeprefix('torch.')}. Give floats, in nats."
        )
    return widened(values)


def require_bool(values: Any, place: str) -> None:
    """Refuse anything but a tensor of bool: the complement of 1 among whole numbers is -2, which counts as true."""
    found = getattr(values, "dtype", type(values).__name__)
    if found != torch.bool:
        raise ValueError(f"{place} is of {found}. Give a tensor of bool, e.g. labels > 0.")


def stats_of_tokens(stats: Mapping[str, Any], tokens: Tensor) -> dict[str, Tensor]:
    """Return per-token statistics, floats in at least float32; each must lie beside ``tokens``."""
    for name, values in stats.items():
        if not isinstance(values, Tensor):
            raise ValueError(f"SeqLogps: stat '{name}' is of type {type(values).__name__}. Give a tensor.")
        if values.shape != tokens.shape:
            raise ValueError(
                f"SeqLogps: stat '{name}' has shape {list(values.shape)}, "
                f"tokens {list(tokens.shape)}. Give one value per scored token."
            )
        if values.device != tokens.device:
            raise ValueError(
                f"SeqLogps: stat '{name}' is on {values.device}, tokens on {tokens.device}. Move one."
            )
        if values.is_complex():
            raise ValueError(f"SeqLogps: stat '{name}' is complex. Give real numbers.")
    return {name: widened(values) for name, values in stats.items()}


def host_counts(values: Any, place: str) -> Lengths:
    """Return counts as host ints, each at least 1."""
    counts = values if isinstance(values, Lengths) else _host_ints(values, place)
    if counts and min(counts) < 1:
        raise ValueError(
            f"{place} holds {min(counts)} at {counts.index(min(counts))}. Give at least 1 everywhere."
        )
    return counts


def _host_ints(values: Any, place: str) -> Lengths:
    if isinstance(values, Tensor):
        raise ValueError(f"{place} is a tensor. Give host ints, e.g. {place.split()[-1]}.tolist().")
    try:
        return Lengths([index(value) for value in values])
    except TypeError:
        raise ValueError(f"{place} is {values!r}. Give whole numbers.") from None


def require_responses(owner: str, parts: Mapping[str, Any]) -> None:
    """Refuse parts of units that are no log-probs of responses, or lie on several devices."""
    for name, part in parts.items():
        if not hasattr(part, "tokens"):
            raise TypeError(f"{owner}: {name} is of type {type(part).__name__}. Build a prefopt.SeqLogps.")
    same_device(owner, {name: part.tokens for name, part in parts.items()})


def same_device(owner: str, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors of one value on several devices."""
    (first, one), *others = tensors.items()
    for name, other in others:
        if other.device != one.device:
            raise ValueError(f"{owner}: {first} is on {one.device} but {name} on {other.device}. Move one.")


def require_vectors(name: str, values: Iterable[Any]) -> None:
    """Refuse anything but 1-D tensors on one device, one for each response."""
    rows = {f"{name}[{row}]": value for row, value in enumerate(values)}
    for place, value in rows.items():
        if not isinstance(value, Tensor) or value.dim() != 1:
            raise ValueError(
                f"SeqLogps.from_ragged: {place} is {_told(value)}. Give one 1-D tensor for each response."
            )
    if rows:
        same_device("SeqLogps.from_ragged", rows)


def require_named(values: Any, place: str) -> Mapping[str, Any]:
    """Refuse anything but a dict."""
    if not isinstance(values, Mapping):
        raise TypeError(f"{place} is of type {type(values).__name__}. Give a dict, or leave it out.")
    return values


def require_padded(name: str, values: Any) -> None:
    """Refuse anything but a 2-D tensor."""
    if not isinstance(values, Tensor) or values.dim() != 2:
        raise ValueError(f"SeqLogps.from_padded: {name} is {_told(values)}. Give a tensor [S, T].")


def kept_of(mask: Tensor) -> Tensor:
    """Return a mask as bool; refuse one that holds anything but 0 and 1, as labels and weights do.

    Waits for the device, as reading the lengths off a mask does.
    """
    keep = mask.bool()
    if mask.dtype != torch.bool and not torch.equal(keep.to(mask.dtype), mask):
        odd = mask[keep.to(mask.dtype) != mask][0].item()
        raise ValueError(
            f"SeqLogps.from_padded: mask holds {odd}. Give 1 at scored positions and 0 elsewhere, "
            f"e.g. labels != -100."
        )
    return keep


def require_log_probs(tokens: Tensor, place: str) -> None:
    """Refuse numbers that cannot be log-probs: costs or probabilities, none of them below 0, or logits.

    Up to 1 nat above 0 counts as rounding beside ones below it. Waits for the device.
    """
    low, high = torch.stack(torch.aminmax(tokens.detach())).tolist()
    if high > 1.0 or (low >= 0.0 and high > 0.01):
        raise ValueError(
            f"{place} reaches from {low:g} to {high:g}. Give log-probs, which are 0 at most: of probabilities the "
            f"log, of cross-entropies the negative, of logits the log-softmax."
        )


def _told(value: Any) -> str:
    return f"of shape {list(value.shape)}" if isinstance(value, Tensor) else f"of type {type(value).__name__}"
