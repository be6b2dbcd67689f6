"""The block of a recipe that names the model to train, and how it computes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from prefopt.recipe.blocks import Block, Count, Decay, Text, some, wrong

_HEX = frozenset("0123456789abcdef")


class Lora(Block):
    """A new low-rank adapter; the weights of the model stay frozen."""

    rank: Count = 16
    """Inner dimension of every adapter."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The adapter's output is scaled by alpha / rank."""
    targets: Annotated[
        Annotated[Literal["all-linear"], Tag("<name>")]
        | Annotated[tuple[Text, ...], Field(strict=False), AfterValidator(some), Tag("<list>")],
        Discriminator(lambda value: "<name>" if isinstance(value, str) else "<list>"),
    ] = "all-linear"
    """all-linear, or a list of module names such as [q_proj, v_proj]."""
    dropout: Decay = 0.0
    """Share of the adapter's inputs dropped while training, whatever model.dropout says."""


class Model(Block):
    """The model to train and how it computes."""

    path: Text
    """Hub id, local folder, or builtin:tiny."""
    revision: Text | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights. bfloat16 halves memory, but updates below 1/256 of a weight are lost."""
    autocast: Literal["bfloat16"] | None = None
    """Compute in this dtype while the weights keep theirs."""
    chat_template: Text | None = None
    """A Jinja file, or the template itself; in place of the tokenizer's own."""
    attention: Literal["auto", "segments", "dense", "varlen", "flex"] = "auto"
    """Attention kernel; auto takes the fastest exact one. varlen and flex run on NVIDIA GPUs."""
    checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """Compile the decoder layers, once, for packs filled up to batch.tokens_per_batch: a wait, then faster steps."""
    quantization: Literal["nf4", "int8"] | None = None
    """Hold the frozen weights in 4 or 8 bits (bitsandbytes, NVIDIA GPU) under lora or adapter."""
    dropout: bool = False
    """Keep the dropout of the model's config, and of model.adapter, in training; the reference never drops."""
    trust_remote_code: bool = False
    """Run Python code from the model's repository; needs the full commit as revision."""
    lora: Lora | None = None
    """Train a new adapter."""
    adapter: Text | None = None
    """Path or hub id of an existing adapter to go on training."""

    @model_validator(mode="after")
    def _check(self) -> Model:
        if self.lora is not None and self.adapter is not None:
            raise wrong(
                "adapter goes on from an existing adapter, lora makes a new one. Keep one.", "adapter"
            )
        if self.quantization is not None and self.lora is None and self.adapter is None:
            raise wrong(
                f"{self.quantization} weights cannot be trained. Set model.lora or model.adapter.",
                "quantization",
            )
        pinned = self.revision is not None and len(self.revision) == 40 and not set(self.revision) - _HEX
        if self.trust_remote_code and not pinned and not Path(self.path).is_dir():
            raise wrong(
                "runs code from the model's repository, so it needs a fixed version. "
                "Set model.revision to the full commit (40 hexadecimal digits).",
                "trust_remote_code",
            )
        return self
