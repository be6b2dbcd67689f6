"""The optimizer and the learning-rate schedule: settings, values by step, state by parameter name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prefopt.engine.sharding import gather, spread_like
from prefopt.errors import ResumeError

SCHEDULES = ("cosine", "linear", "constant")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimSettings:
    """Settings of AdamW and of its learning rate over the run.

    Args:
        lr: peak learning rate.
        betas: decay rates of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled; applied to matrices, not to norms and biases.
        schedule: "cosine" or "linear" fall to zero at the last step, "constant" stays.
        warmup: linear rise from zero; a share of all steps below 1, else a number of steps.
        clip: largest total gradient norm; None leaves gradients as they are.
        mask_lr: peak learning rate of trained token weights; None takes ``lr``.
        mask_weight_decay: decoupled, of their matrices.
    """

    lr: float = 5e-7
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup: float = 0.1
    clip: float | None = 1.0
    mask_lr: float | None = None
    mask_weight_decay: float = 0.01


def learning_rate(settings: OptimSettings, step: int, num_steps: int) -> float:
    """Return the learning rate of optimizer step ``step`` (from 0) of ``num_steps``."""
    warmup = round(settings.warmup * num_steps) if settings.warmup < 1 else int(settings.warmup)
    if step < warmup:
        return settings.lr * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, num_steps - warmup)
    match settings.schedule:
        case "cosine":
            return settings.lr * 0.5 * (1 + math.cos(math.pi * progress))
        case "linear":
            return settings.lr * (1 - progress)
        case "constant":
            return settings.lr
    raise AssertionError(f"unknown schedule {settings.schedule}")


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes, by name, each once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def adamw(model: nn.Module, settings: OptimSettings, masks: nn.Module | None = None) -> torch.optim.AdamW:
    """Build AdamW over the trainable parameters of ``model`` and, in groups of their own, of ``masks``."""
    groups = _groups(model, settings.weight_decay, 1.0)
    if masks is not None:
        share = 1.0 if settings.mask_lr is None else settings.mask_lr / settings.lr
        groups += _groups(masks, settings.mask_weight_decay, share)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True)


def _groups(module: nn.Module, weight_decay: float, share: float) -> list[dict[str, Any]]:
    """Part parameters by whether they decay; ``share`` is their part of the learning rate."""
    parameters = list(trainable(module).values())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay, "share": share},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0, "share": share},
    ]
    return [group for group in groups if group["params"]]


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Give every parameter group its share of the learning rate ``value``."""
    for group in optimizer.param_groups:
        group["lr"] = value * group["share"]


def state_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], *, keep: bool = True
) -> dict[str, Tensor]:
    """Return the optimizer's state as flat tensors on the host, named ``parameter/field``.

    Args:
        optimizer: its state may be spread over ranks; then all of them must call.
        parameters: what it trains, by name.
        keep: False returns nothing, for ranks that only take part in the gathering.
    """
    flat: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        for field, value in optimizer.state.get(parameter, {}).items():
            whole = gather(torch.as_tensor(value), keep=keep)
            if whole is not None:
                flat[f"{name}/{field}"] = whole
    return flat


def load_state_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], flat: Mapping[str, Tensor]
) -> None:
    """Put back what ``state_tensors`` returned.

    Raises:
        ResumeError: the state belongs to other parameters. A parameter without state is none: it never
            had a gradient, and starts when it gets one.
    """
    fields: dict[str, set[str]] = {}
    for key in flat:
        name, _, field = key.rpartition("/")
        fields.setdefault(name, set()).add(field)
    every = set().union(*fields.values())
    strange = min((name for name in fields if name not in parameters or fields[name] != every), default=None)
    if strange is not None:
        raise ResumeError(
            f"checkpoint: the optimizer state and the model disagree on parameter '{strange}'. "
            f"Resume with the recipe that wrote the checkpoint."
        )
    for key, value in flat.items():
        name, _, field = key.rpartition("/")
        parameter = parameters[name]
        # the step counter stays where fused AdamW keeps it, moments follow their parameter
        optimizer.state[parameter][field] = spread_like(value, parameter)


def total_size(parameters: Iterable[nn.Parameter]) -> int:
    """Return how many numbers ``parameters`` hold; of 4-bit weights, two to a byte, all of them."""
    shapes = (getattr(getattr(p, "quant_state", p), "shape", p.shape) for p in parameters)
    return sum(math.prod(shape) for shape in shapes)
