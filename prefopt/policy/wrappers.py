"""Find the transformers model inside the wrappers of engines, compilers and adapter libraries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from prefopt.errors import ModelError


def causal_model(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model at the core of ``model``.

    Raises:
        ModelError: there is none.
    """
    found: Any = without_engine(model)
    if not isinstance(found, PreTrainedModel) and hasattr(found, "get_base_model"):
        found = found.get_base_model()
    if not isinstance(found, PreTrainedModel):
        raise ModelError(
            f"model: {type(found).__name__} is no transformers model. Load a causal language model."
        )
    return found


def without_engine(model: nn.Module) -> nn.Module:
    """Take off the wrappers of data-parallel engines and of the compiler, but not adapters."""
    found: Any = model
    # asked of the class, as some engines answer for the attributes of what they hold
    while not isinstance(found, PreTrainedModel) and not hasattr(type(found), "get_base_model"):
        inner = getattr(found, "_orig_mod", None) or getattr(found, "module", None)
        if not isinstance(inner, nn.Module):
            break
        found = inner
    return found  # type: ignore[no-any-return]


def class_of(module: nn.Module) -> type[Any]:
    """Return the class a module was written as: ``fully_shard`` puts one of its own in front."""
    return next(kind for kind in type(module).__mro__ if not issubclass(kind, FSDPModule))


def is_sharded(model: nn.Module) -> bool:
    """Tell whether the weights are spread over ranks, so that whole ones last only for a module's forward."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def outermost_layers(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers of a model that can be computed again by themselves, first to last, none inside another."""
    for child in module.children():
        if isinstance(child, GradientCheckpointingLayer):
            yield child
        else:
            yield from outermost_layers(child)


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the layers that the hidden states pass through, first to last.

    Raises:
        ModelError: no list of as many modules as the configuration has layers.
    """
    depth = model.config.get_text_config().num_hidden_layers
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return list(module)
    raise ModelError(
        f"model: {class_of(model).__name__} keeps its {depth} layers where prefopt does not look, so they can "
        f"neither be read nor compiled. Choose a loss without weights from activations, leave model.compile out, "
        f"or choose another model."
    )
