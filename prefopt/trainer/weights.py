"""Whether the optimizer still moves what is trained: held where a step begins, and once behind the first backward."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import nn

from prefopt.errors import ModelError, RecipeError
from prefopt.policy.wrappers import outermost_layers

log = logging.getLogger(__name__)


class TrainedWeights:
    """What was trained when a trainer was built.

    Args:
        parameters: by name.

    Raises:
        RecipeError: some are in float16.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        narrow = [name for name, p in parameters.items() if p.dtype == torch.float16]
        if narrow:
            raise RecipeError(
                f"model: '{narrow[0]}' is to be trained in float16, where gradients and their squares vanish. Load the "
                f"model in float32 or bfloat16."
            )
        self.parameters = parameters  # held, so that no other tensor can get their ids
        self._shapes = {id(p): p.shape for p in parameters.values()}
        self._is_reached = False

    def check(self, model: nn.Module) -> None:
        """Refuse a model of which more is trained by now, or other tensors; what was frozen since just stays.

        Args:
            model: as it stands, unwrapped and not sharded.

        Raises:
            RecipeError: names the first tensor that the optimizer would not move.
        """
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and self._shapes.get(id(parameter)) != parameter.shape:
                raise RecipeError(
                    f"model: '{name}' is trained by now, but this trainer's optimizer was built without it, or with "
                    f"another tensor in its place, so it would never move. Change what is trained, its size or its "
                    f"adapters before, load weights into the tensors that are there, and build a new Trainer."
                )

    def check_reached(self, model: nn.Module) -> None:
        """Refuse, once, layers that no gradient reaches, and say which other trained tensors got none.

        Raises:
            ModelError: something between the layers and the loss keeps their gradient back.
        """
        if self._is_reached:
            return
        self._is_reached = True
        without = {id(p): name for name, p in self.parameters.items() if p.requires_grad and p.grad is None}
        if not without:
            return
        inside = {id(p) for layer in outermost_layers(model) for p in layer.parameters() if p.requires_grad}
        first, many = next(iter(without.values())), f"{len(without)} of {len(self.parameters)}"
        if inside and inside <= without.keys():
            raise ModelError(
                f"model: no gradient reaches its layers, so '{first}' would never move ({many} trained tensors). Take "
                f"gradient checkpointing with use_reentrant=False, and an adapter that is neither merged nor switched "
                f"off."
            )
        log.warning(
            "model: %s trained tensors got no gradient in the first step, '%s' for one, and stay as they are.",
            many,
            first,
        )
