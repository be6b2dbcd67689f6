"""Few layers in place of many: of layers that are alike, two from either end run, the others only count.

A layer that is left out returns its input as its output. From its forward to its backward it is counted with
the bytes that a layer of its kind was seen to hold, and after its backward with its gradients. What is seen
is seen on the second layer and on the last but one: the outermost two have neighbours, such as the
embeddings, whose bytes come and go with theirs.

Six layers of one kind, 0 to 5: layers 2 and 3 are left out. A first run, without them, sees 100 bytes alive
when the forward of layer 1 begins and 130 when that of layer 2 does, so a layer holds 30 after its forward.
It sees 190 when the backward of layer 4 begins and 162 when that of layer 3 does, so a layer gave up 28: of
its 30 bytes 2 were gone by then, say a weight cast for the forward alone. In the second run layers 2 and 3
each add 30 in the forward, take away 2 where it turns, and 28 in the backward.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prefopt.memory.tracking import FORWARD, MemoryTracker
from prefopt.policy.wrappers import outermost_layers

_PLACES = ("idx", "index", "layer_id", "layer_number")
"""Parts of the names by which layers know their own place, in which alone those of one kind may differ."""


class LayerStack:
    """Stand between the decoder layers of a model without memory, and count for those that do not run.

    Args:
        model: its layers are changed in place, so that all but four of each kind are left out.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = list(outermost_layers(model))
        self.kinds = _kinds_of(model, layers)
        self._places = {kind: _places(self.kinds, kind) for kind in set(self.kinds)}
        ends = {at for places in self._places.values() for at in (*places[:2], *places[-2:])}
        self.is_left_out = [at not in ends for at in range(len(layers))]
        self.gradients = [sum(p.nbytes for p in layer.parameters() if p.requires_grad) for layer in layers]
        self._outputs: dict[int, Any] = {}  # by kind
        self._forward: dict[int, int] = {}  # bytes alive when a layer's forward begins, by layer
        self._backward: dict[int, int] = {}  # likewise for its backward
        self._held: dict[int, tuple[int, int]] = {}  # by kind, after the forward and before the backward
        self._tracker: MemoryTracker | None = None
        for at, layer in enumerate(layers):
            layer.forward = partial(self._call, at, layer.forward)

    def observe(self, tracker: MemoryTracker) -> None:
        """Prepare a run that is there to see what layers hold."""
        self._tracker, self._held, self._forward, self._backward = tracker, {}, {}, {}

    def count(self, tracker: MemoryTracker) -> None:
        """Prepare a run in which layers that are left out hold what was seen."""
        self._held = {kind: self._seen(places) for kind, places in self._places.items() if len(places) > 4}
        self._tracker = tracker

    def turn(self) -> None:
        """Give up what no layer holds any more when the forward is over, such as weights cast for it."""
        assert self._tracker is not None
        for at, kind in enumerate(self.kinds):
            if self.is_left_out[at] and self._held:
                after, before = self._held[kind]
                self._tracker.hold(before - after)

    def _seen(self, places: list[int]) -> tuple[int, int]:
        """Return what a layer was seen to hold after its forward and before its backward."""
        if not self._forward:
            return 0, 0  # a reference, through which no gradient flows
        second, last_but_one = places[1], places[-2]
        after = self._forward[second + 1] - self._forward[second]
        if last_but_one not in self._backward or last_but_one - 1 not in self._backward:
            return after, after  # no gradient flows down to it
        return after, self._backward[last_but_one] - self._backward[last_but_one - 1]

    def _call(self, at: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        kind, tracker = self.kinds[at], self._tracker
        assert tracker is not None
        # a layer that is computed again in the backward was counted before
        counts = torch.is_grad_enabled() and tracker.phase == FORWARD
        if counts:
            self._forward[at] = tracker.passing
        if self.is_left_out[at]:
            hidden, rest = args[0] if args else kwargs["hidden_states"], self._outputs[kind]
            if counts and self._held:
                tracker.hold(self._held[kind][0])
        else:
            out = forward(*args, **kwargs)
            hidden, rest = (out[0], out[1:]) if isinstance(out, tuple) else (out, None)
            self._outputs[kind] = rest
        if hidden.requires_grad:
            gate: Callable[..., Tensor] = _Gate.apply
            hidden = gate(hidden, self, at)
        return hidden if rest is None else (hidden, *rest)

    def enter_backward(self, at: int) -> None:
        """Note that the backward of layer ``at`` begins, and count all of it if the layer is left out."""
        assert self._tracker is not None
        self._backward[at] = self._tracker.passing
        if self.is_left_out[at] and self._held:
            self._tracker.hold(-self._held[self.kinds[at]][1])
            self._tracker.add_gradients(self.gradients[at])


class _Gate(torch.autograd.Function):
    """Stand behind a layer, to tell when its backward begins."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, stack: LayerStack, at: int) -> Tensor:
        ctx.stack, ctx.at = stack, at
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        ctx.stack.enter_backward(ctx.at)
        return upstream, None, None


def _kinds_of(model: Any, layers: list[nn.Module]) -> list[int]:
    """Number the layers so that those of one number hold the same; one that shares weights is alone."""
    embeddings: Any = model.get_input_embeddings()
    is_reached = any(p.requires_grad for p in embeddings.parameters())
    owners: dict[int, int] = {}
    for layer in layers:
        for parameter in layer.parameters():
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    numbers: dict[Any, int] = {}
    kinds = []
    for at, layer in enumerate(layers):
        is_alone = any(owners[id(p)] > 1 for p in layer.parameters())
        # a frozen layer keeps nothing before the first trained weight, and much behind it
        key = (is_reached, at if is_alone else -1, _signature(layer))
        kinds.append(numbers.setdefault(key, len(numbers)))
        is_reached = is_reached or any(p.requires_grad for p in layer.parameters())
    return kinds


def _signature(layer: nn.Module) -> tuple[Any, ...]:
    """Return all that a layer is: its modules, their plain settings, and its weights without their values."""
    weights = [(name, p.shape, p.dtype, p.requires_grad) for name, p in layer.named_parameters()]
    settings = [
        (path, name, value)
        for path, module in layer.named_modules()
        for name, value in sorted(vars(module).items())
        if isinstance(value, (bool, int, float, str)) and not any(part in name for part in _PLACES)
    ]
    return str(layer), tuple(weights), tuple(settings)


def _places(kinds: list[int], kind: int) -> list[int]:
    return [at for at, other in enumerate(kinds) if other == kind]
