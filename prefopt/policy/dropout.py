"""Dropout of every kind: what a model has of it, switched off, given back, and refused where it cannot be kept."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn
from transformers import PretrainedConfig

from prefopt.errors import RecipeError

_DROPOUT = re.compile(r"drop(out|_prob|_rate)?$|pdrop$|dropout_prob$|layerdrop$|jitter_(noise|eps)$|^dropout")
_ATTENTION_DROPOUT = re.compile(r"att(entio)?n.*drop")
_ALWAYS_ON = {"phimoe": {"router_jitter_noise"}}
"""Names that say dropout, by the type of the model: here it is a threshold, used in evaluation as well."""
_DRAWING = re.compile(r"PhimoeTopKRouter")
"""Modules that draw at random in training with no probability to switch it off by."""
_ADAPTER_DROPOUT = "lora_dropout"
"""What peft calls the modules that drop inputs of LoRA."""


class Dropout(NamedTuple):
    """One dropout that is on."""

    path: str  # of its module
    owner: Any  # holds the probability: a module, a configuration or a dict of them
    name: str
    value: float

    def set(self, value: float) -> None:
        """Set the probability; a configuration that checks types may not take what it was given itself."""
        if isinstance(self.owner, dict):
            self.owner[self.name] = value
        elif self.name in vars(self.owner):
            vars(self.owner)[self.name] = value
        else:
            setattr(self.owner, self.name, value)


def disable_dropout(model: nn.Module, *, adapters: bool = True) -> list[Dropout]:
    """Switch off every kind of dropout: modules, LoRA's, and the functional one of attention.

    Attention reads its probability from a number on the module or in the configuration, which
    putting ``nn.Dropout`` modules to zero does not reach; router jitter likewise. Routers that draw
    experts at random stay in evaluation mode.

    Args:
        model: changed in place.
        adapters: False spares the dropout of LoRA's inputs.

    Returns:
        Each that was switched off, as it was before.
    """
    before = [each for each in _dropouts(model) if adapters or _ADAPTER_DROPOUT not in each.path.split(".")]
    for each in before:
        each.set(0.0)
    for module in model.modules():
        if _DRAWING.search(type(module).__name__):
            hold_in_evaluation(module)
    return before


def hold_in_evaluation(module: nn.Module) -> None:
    """Keep a module in evaluation mode, whatever mode its model is put in."""
    module.eval()
    vars(module)["train"] = lambda mode=True: module


@contextmanager
def given_back(dropouts: Sequence[Dropout]) -> Iterator[None]:
    """Give dropouts that were switched off their values back for the block."""
    for each in dropouts:
        each.set(each.value)
    try:
        yield
    finally:
        for each in dropouts:
            each.set(0.0)


def has_dropout(model: nn.Module) -> bool:
    """Tell whether two passes in training mode may differ."""
    draws = any(_DRAWING.search(type(m).__name__) and "train" not in vars(m) for m in model.modules())
    return draws or bool(_dropouts(model))


def check_attention_dropout(model: nn.Module) -> None:
    """Refuse dropout of attention weights, which packed attention does not apply.

    Raises:
        RecipeError: names the setting.
    """
    for path, _, name, value in _dropouts(model):
        name = path.rsplit(".", maxsplit=1)[-1] if name == "p" else name
        if _ATTENTION_DROPOUT.search(name):
            raise RecipeError(
                f"model.dropout: {name} of {type(model).__name__} is {value:g}, but packed attention drops "
                f"nothing. Set model.dropout: false, or {name} to 0 in the model's config.json."
            )


def _dropouts(model: nn.Module) -> list[Dropout]:
    """Return every dropout that is on."""
    found: list[Dropout] = []
    configs: dict[int, tuple[str, PretrainedConfig]] = {}
    for path, module in model.named_modules():
        # adapter libraries have dropout modules of their own kind
        if "Dropout" in type(module).__name__ and isinstance(getattr(module, "p", None), float):
            found.append(Dropout(path, module, "p", module.p))
        for name, value in vars(module).items():
            if isinstance(value, float) and _DROPOUT.search(name):
                found.append(Dropout(path, module, name, value))
            elif isinstance(value, dict) and _DROPOUT.search(name):
                found += [Dropout(path, value, key, p) for key, p in value.items() if isinstance(p, float)]
        config = getattr(module, "config", None)
        if isinstance(config, PretrainedConfig):
            configs.setdefault(id(config), (path, config))
    for path, config in configs.values():
        found += [
            Dropout(path, config, name, value)
            for name, value in vars(config).items()
            if isinstance(value, float) and _DROPOUT.search(name)
        ]
    always_on = {name for _, config in configs.values() for name in _ALWAYS_ON.get(config.model_type, ())}
    return [each for each in found if each.value and each.name not in always_on]
