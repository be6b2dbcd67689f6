"""Decoder layers compiled one by one, in place, all by the same few graphs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._dynamo.backends.registry import lookup_backend
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from transformers import PreTrainedModel

from prefopt.errors import ModelError
from prefopt.policy.wrappers import decoder_layers

COMPILER = "inductor"
MOST_GRAPHS = 64
"""Beyond so many graphs of one layer's code a run is refused; the compiler's own limit of 8 is soon reached:
layers of two kinds, each in training, without gradient, with adapters off, and in a second model."""


class CompiledLayers:
    """Compile the layers of a model for rows of one size.

    Embeddings, the last norm and the head stay as they are. A row of another size, or a layer of
    another make, would take a graph of its own, and so do training, scoring without gradient and
    switched-off adapters.

    Args:
        model: its layers are compiled in place, at their first call.
        size: tokens of every row.

    Attributes:
        num_graphs: graphs compiled so far.
    """

    def __init__(self, model: PreTrainedModel, size: int) -> None:
        self.size, self.num_graphs, self.name = size, 0, type(model).__name__
        self.layers = decoder_layers(model)

        def backend(graph: Any, inputs: Any) -> Any:
            self.num_graphs += 1
            return lookup_backend(COMPILER)(graph, inputs)

        limits = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, MOST_GRAPHS)
        for layer in self.layers:
            layer.compile(backend=backend, fullgraph=True, dynamic=False)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Turn a refusal of the compiler into one line."""
        try:
            yield
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            # a paragraph says what, those behind it where and how to find out more
            reason = " ".join(str(error).strip().split("\n\n")[0].split())[:300].rstrip(".")
            raise ModelError(
                f"model.compile: the layers of {self.name} cannot be compiled whole ({reason}). Leave it out."
            ) from error

    @contextmanager
    def off(self) -> Iterator[None]:
        """Run the layers, and them alone, as they were written: attention may be compiled in its own way."""
        kept = [layer._compiled_call_impl for layer in self.layers]
        for layer in self.layers:
            layer._compiled_call_impl = None
        try:
            yield
        finally:
            for layer, call in zip(self.layers, kept, strict=True):
                layer._compiled_call_impl = call
