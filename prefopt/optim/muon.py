"""Muon: hidden matrices move along the orthogonalised momentum of their gradients, all else by AdamW."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefopt.optim.kind import Group, Kept, Kind, trainable

if TYPE_CHECKING:
    from torch import Tensor, nn

    from prefopt.optim.muon_update import Muon


def muon(
    groups: list[Group],
    *,
    lr: float,
    momentum: float = 0.95,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> Muon:
    """Build Muon for the groups marked ``is_hidden`` and AdamW for the others; see ``Muon``."""
    from prefopt.optim.muon_update import Muon

    matrices = [group for group in groups if group["is_hidden"]]
    others = [group for group in groups if not group["is_hidden"]]
    return Muon(matrices, others, lr=lr, momentum=momentum, betas=betas, eps=eps)


def hidden_matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trained matrices of a model, by name, but those of embeddings and head.

    An adapter's two factors are matrices as well, if not on embeddings or head. Experts that are stacked in
    one tensor of three dimensions are none.
    """
    outside = {id(p) for module in _embeddings_and_head(model) for p in module.parameters()}
    return {name: p for name, p in trainable(model).items() if p.dim() == 2 and id(p) not in outside}


def _embeddings_and_head(model: nn.Module) -> list[nn.Module]:
    from torch import nn

    ends = [getattr(model, name, None) for name in ("get_input_embeddings", "get_output_embeddings")]
    found = [end() for end in ends if end is not None]
    # an adapter wraps the layer that it belongs to
    layers = ((module, getattr(module, "base_layer", module)) for module in model.modules())
    found += [module for module, layer in layers if isinstance(layer, nn.Embedding)]
    return [module for module in found if module is not None]


def keeps(parameter: Tensor) -> Kept:
    """One momentum like the parameter."""
    import torch

    return {"momentum_buffer": torch.empty_like(parameter, device="meta")}


def describe(model: nn.Module) -> str:
    """Say how much Muon moves and how much AdamW, and how much of the latter is stacked matrices."""
    hidden = hidden_matrices(model)
    others = [p for name, p in trainable(model).items() if name not in hidden]
    stacked = [p for p in others if p.dim() > 2]
    text = (
        f"Muon for {len(hidden)} hidden matrices ({sum(p.numel() for p in hidden.values()):,} parameters), "
        f"AdamW for {len(others)} other tensors ({sum(p.numel() for p in others):,})"
    )
    if stacked:
        sizes = sum(p.numel() for p in stacked)
        text += f", {len(stacked)} of them of three dimensions or more, as stacked experts are ({sizes:,})"
    return text


KIND = Kind("Muon and AdamW", muon, keeps, takes=hidden_matrices, describe=describe)
