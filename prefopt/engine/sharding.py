"""Weights spread over ranks by FSDP2: each rank keeps a share and gathers whole weights unit by unit.

Knows torch only. Every function that gathers must be called by all ranks, in the same order.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from prefopt.errors import RecipeError


def shard(
    model: nn.Module, device: torch.device, *, units: Collection[str] = (), reshard: bool = True
) -> nn.Module:
    """Spread the weights of a language model over all ranks, in place.

    Every layer is a unit, and so is a head that does not share its weight with the embeddings; what
    is left belongs to the model itself.

    Args:
        model: a causal language model, adapters included; on any device, the same on all ranks.
        device: where the shares live.
        units: class names of the layers; empty takes those that the model says belong together.
        reshard: give gathered weights up between forward and backward, and gather them twice.

    Raises:
        RecipeError: no layer has such a class.
    """
    if isinstance(model, FSDPModule):
        return model
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    layers, heads = units_of(model, units)
    # innermost first, as each call takes what no earlier one took
    for unit in [*layers, *heads, model]:
        fully_shard(unit, mesh=mesh, reshard_after_forward=reshard)
    return model


def units_of(model: nn.Module, names: Collection[str] = ()) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return the layers that are gathered one by one, innermost first, and the head if it is, else nothing.

    Args:
        model: a causal language model, adapters included; what is left is gathered as the model's own.
        names: class names of the layers; empty takes those that the model says belong together.

    Raises:
        RecipeError: no layer has such a class.
    """
    return _layers(model, names), _own_head(model)


def _layers(model: nn.Module, units: Collection[str]) -> list[nn.Module]:
    modules = list(model.modules())
    names = set(units) or {
        name for each in modules for name in getattr(each, "_no_split_modules", None) or ()
    }
    found = [each for each in modules if type(each).__name__ in names]
    if not found:
        raise RecipeError(
            f"launcher: {type(model).__name__} has no layer of class {' or '.join(sorted(names)) or '(none named)'} "
            f"to shard by. Name its layers' class in fsdp_transformer_layer_cls_to_wrap."
        )
    return found[::-1]


def _own_head(model: Any) -> list[nn.Module]:
    """Return the head if no weight of it is also a weight of the embeddings."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    is_tied = {id(p) for p in head.parameters()} & {id(p) for p in embeddings.parameters()}
    return [] if is_tied else [head]


def rest(model: nn.Module) -> None:
    """Give up every gathered weight, so that the model's parameters are the shares again."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def is_spread(tensor: Tensor) -> bool:
    """Tell whether each rank holds only a share of a tensor."""
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return this rank's share of a tensor, the very memory of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Put a tensor together on the device; one that is not spread over ranks is returned as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(tensor: Tensor, *, keep: bool = True) -> Tensor | None:
    """Put a tensor together from all ranks' shares.

    Args:
        tensor: spread over ranks, or whole.
        keep: hold the result, on the host; elsewhere nothing stays in memory.
    """
    found = whole(tensor)
    return found.detach().cpu().contiguous() if keep else None


def spread_like(value: Tensor, like: Tensor) -> Tensor:
    """Return this rank's share of a tensor that all ranks hold, spread as ``like`` is."""
    value = value.to(like.device)
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value.clone()
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def gather_weights(model: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """Put the weights of a sharded model together, each shared one once.

    Args:
        model: sharded. With adapters, only what is trained is gathered: the base is not saved.
        keep: hold the result, on the host; elsewhere it is empty.
    """
    rest(model)
    has_adapter = hasattr(model, "peft_config")
    found: dict[int, Tensor | None] = {}
    weights: dict[str, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if has_adapter and not value.requires_grad:
            continue
        if id(value) not in found:
            found[id(value)] = gather(value, keep=keep)
        kept = found[id(value)]
        if kept is not None:
            weights[name] = kept
    return weights
