"""From settings to an optimizer over a model's trained parameters, and what it will keep for each of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from prefopt.errors import RecipeError
from prefopt.optim.kind import Group, Kept, Kind, decayed, trainable
from prefopt.optim.settings import OPTIMIZERS, MakeOptimizer, OptimSettings, own_settings

LR, MASK_WEIGHT_DECAY = 5e-7, 0.01
_MASKS = "masks."
_SCHEDULED = "scheduled_by_prefopt"
"""What a group remembers of the learning rate that it was last given."""


def trained(model: nn.Module, masks: nn.Module | None = None) -> dict[str, nn.Parameter]:
    """Return everything that an optimizer changes, by name: the model's parameters and those of token weights."""
    others = {} if masks is None else trainable(masks)
    return trainable(model) | {f"{_MASKS}{name}": parameter for name, parameter in others.items()}


def moved(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, nn.Parameter]:
    """Return those of ``parameters`` that an optimizer changes; a function of one's own may leave some out."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return {name: p for name, p in parameters.items() if id(p) in held}


def make_optimizer(
    settings: OptimSettings, model: nn.Module, masks: nn.Module | None = None
) -> torch.optim.Optimizer:
    """Build the optimizer over the trained parameters of ``model`` and, in groups of their own, of ``masks``.

    Every group has a ``share`` of the learning rate of the step.

    Raises:
        RecipeError: it cannot run here, or a function of one's own built what cannot be driven.
    """
    if not isinstance(settings.optimizer, str):
        return _own(settings.optimizer, trained(model, masks))
    kind = OPTIMIZERS[settings.optimizer]
    groups = _groups(kind, settings, model, masks)
    lr = LR if settings.lr is None else settings.lr
    return kind.build(groups, lr=lr, **settings.of(own_settings(kind.build)))


def _groups(kind: Kind, settings: OptimSettings, model: nn.Module, masks: nn.Module | None) -> list[Group]:
    decay = settings.weight_decay or 0.0
    parameters = trainable(model)
    apart = {} if kind.takes is None else kind.takes(model)
    groups = decayed((p for name, p in parameters.items() if name not in apart), decay, 1.0)
    if masks is not None:
        share = 1.0 if settings.mask_lr is None else settings.mask_lr / (settings.lr or LR)
        its = MASK_WEIGHT_DECAY if settings.mask_weight_decay is None else settings.mask_weight_decay
        groups += decayed(trainable(masks).values(), its, share)
    if kind.takes is None:
        return groups
    hidden = decayed(apart.values(), decay, 1.0)
    return [{**each, "is_hidden": True} for each in hidden] + [
        {**each, "is_hidden": False} for each in groups
    ]


def _own(make: MakeOptimizer, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    optimizer = make(parameters)
    _check_driven(optimizer)
    known = {id(p) for p in parameters.values()}
    strange = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in known]
    if strange:
        raise RecipeError(
            f"optim: the optimizer was given a tensor of shape {tuple(strange[0].shape)} that is not trained here, so "
            f"no checkpoint would hold its state. Build it over the parameters that the function gets."
        )
    if any("lr" not in group for group in optimizer.param_groups):
        raise RecipeError(
            f"optim: the groups of {type(optimizer).__name__} have no lr that a schedule could set. "
            f"Give each group one."
        )
    peak = peak_lr(optimizer)
    if not peak > 0:
        raise RecipeError(
            f"optim: the largest learning rate of {type(optimizer).__name__} is {peak:g}, so nothing would move. Give "
            f"its groups their peaks, and leave warm-up and fall to optim.schedule."
        )
    for group in optimizer.param_groups:
        group["share"] = float(group["lr"]) / peak
    return optimizer


def _check_driven(optimizer: object) -> None:
    """Refuse what a trainer cannot step, or what another one has stepped."""
    name = type(optimizer).__name__
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise RecipeError(f"optim: the function returned a {name}. Return a torch.optim.Optimizer.")
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise RecipeError(
            f"optim: {name} evaluates the loss itself, by a closure, but a step's gradients are added up over its "
            f"packs before. Choose an optimizer whose step() takes none."
        )
    if any("share" in group for group in optimizer.param_groups):
        raise RecipeError(
            f"optim: another trainer has driven this {name}, so its learning rates are no longer its peaks. Build a "
            f"new one, or feed() that trainer another source."
        )


def peak_lr(optimizer: torch.optim.Optimizer) -> float:
    """Return the largest learning rate among the groups; before the first step, the peak of the run."""
    return max((float(group["lr"]) for group in optimizer.param_groups), default=0.0)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Give every parameter group its share of the learning rate ``value``.

    Raises:
        RecipeError: a group was added since the optimizer was built, or given another rate since the last call.
    """
    if any("share" not in group for group in optimizer.param_groups):
        raise RecipeError(
            f"optim: {type(optimizer).__name__} has a parameter group that was added while the run went on, so neither "
            f"its learning rate nor its part in clipping and in checkpoints is known. Let the function that builds the "
            f"optimizer add it, over all that will ever be trained."
        )
    for group in optimizer.param_groups:
        if group["lr"] != group.get(_SCHEDULED, group["lr"]):
            raise RecipeError(
                f"optim: a learning rate of {type(optimizer).__name__} was changed to {float(group['lr']):g} while the "
                f"run went on, which the schedule would overwrite. Choose optim.schedule, or train on in a new Trainer."
            )
        group["lr"] = group[_SCHEDULED] = value * group["share"]


def check_optimizer(settings: OptimSettings, device: torch.device, *, is_sharded: bool) -> None:
    """Refuse an optimizer that cannot run on a device, or not with weights spread over ranks.

    Raises:
        RecipeError: says what it needs.
    """
    if isinstance(settings.optimizer, str):
        why = OPTIMIZERS[settings.optimizer].refuse(device, is_sharded)
        if why is not None:
            raise RecipeError(f"optim.name: {settings.optimizer} {why}.")


def kept(
    name: str,
    model: nn.Module,
    masks: nn.Module | None = None,
    part: Callable[[nn.Parameter], Tensor] | None = None,
) -> dict[str, Kept]:
    """Return what an optimizer keeps for each trained parameter.

    Args:
        name: in ``OPTIMIZERS``.
        model: that is trained, on any device.
        masks: makes token weights, if any.
        part: what a rank holds of a parameter of ``model``, as a tensor on the meta device; None: all of it.
    """
    kind = OPTIMIZERS[name]
    own = None if kind.takes is None else kind.takes(model)
    found: dict[str, Kept] = {}
    for key, parameter in trained(model, masks).items():
        its = kind.keeps if own is None or key in own else OPTIMIZERS["adamw"].keeps
        held = _outline if part is None or key.startswith(_MASKS) else part
        found[key] = its(held(parameter))
    return found


def _outline(parameter: nn.Parameter) -> Tensor:
    return torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")


def kept_bytes(name: str, states: Iterable[Kept]) -> int:
    """Return the bytes of states that ``kept`` returned; numbers take none, and what is shared counts once."""
    shared: dict[str, int] = {}
    total = 0
    for state in states:
        for field, value in state.items():
            if not isinstance(value, Tensor):
                continue
            if field in OPTIMIZERS[name].shared:
                shared[field] = value.nbytes
            else:
                total += value.nbytes
    return total + sum(shared.values())


def name_of(settings: OptimSettings, optimizer: torch.optim.Optimizer) -> str:
    """Return what a checkpoint calls an optimizer: its name, or the class that a function of one's own chose."""
    if isinstance(settings.optimizer, str):
        return settings.optimizer
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"


def describe(settings: OptimSettings, optimizer: torch.optim.Optimizer, model: nn.Module) -> str:
    """Say which optimizer moves the weights of ``model``, and how its learning rate goes; before the first step."""
    kind = OPTIMIZERS[settings.optimizer] if isinstance(settings.optimizer, str) else None
    if kind is None:
        who = type(optimizer).__qualname__
    else:
        who = kind.label if kind.describe is None else kind.describe(model)
    return f"{who}, learning rate up to {peak_lr(optimizer):g}, {settings.schedule}"
