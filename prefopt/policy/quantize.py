"""Weights in few bits under a trained adapter (QLoRA), by bitsandbytes through transformers."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from prefopt.errors import RecipeError

PACKAGE = "bitsandbytes"


def check_can_quantize(kind: str, device: torch.device, *, is_sharded: bool, is_builtin: bool) -> None:
    """Refuse quantised weights where they cannot be had.

    Args:
        kind: nf4 or int8.
        device: that the model will run on.
        is_sharded: weights are spread over ranks.
        is_builtin: the model is made on the spot, not loaded.

    Raises:
        RecipeError: says what is missing.
    """
    if is_builtin:
        raise RecipeError(
            "model.quantization: a built-in model has no stored weights to quantise. Leave it out, or choose "
            "another model.path."
        )
    if find_spec(PACKAGE) is None:
        raise RecipeError(
            f"model.quantization: {kind} needs bitsandbytes, which is not installed. Install it with "
            f"pip install 'prefopt[quantization]', or leave it out."
        )
    if device.type != "cuda":
        raise RecipeError(
            f"model.quantization: {kind} needs an NVIDIA GPU, but this run is on {device.type}. Leave it out."
        )
    if is_sharded:
        raise RecipeError(
            f"model.quantization: {kind} weights cannot be spread over ranks by FSDP2. Launch plain data "
            f"parallel training, or leave it out."
        )


def loading_config(kind: str, compute: torch.dtype) -> BitsAndBytesConfig:
    """Return how transformers shall quantise every linear layer but the head while it loads.

    Args:
        kind: ``nf4``, 4-bit NormalFloat whose scales are quantised as well, as in QLoRA; ``int8``, 8 bits
            with outlying inputs multiplied apart, as in LLM.int8().
        compute: what nf4 weights are turned into for a product.

    Source:
        Dettmers, Pagnoni, Holtzman and Zettlemoyer, "QLoRA: Efficient Finetuning of Quantized LLMs", 2023,
        arXiv 2305.14314, section 3; Dettmers, Lewis, Belkada and Zettlemoyer, "LLM.int8()", 2022,
        arXiv 2208.07339.
    """
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
    assert kind == "nf4", kind
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def is_quantized(model: Any) -> bool:
    """Tell whether a model of transformers holds weights in few bits, whoever quantised them."""
    return bool(getattr(model, "is_quantized", False))


def describe_weights(model: nn.Module) -> str | None:
    """Say how many layers are quantised and what the rest is in; None where none is."""
    layers = [m for m in model.modules() if type(m).__module__.startswith(f"{PACKAGE}.")]
    if not layers:
        return None
    kinds = Counter(type(layer).__name__ for layer in layers)
    inside = {id(p) for layer in layers for p in layer.parameters()}
    rest = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if id(p) not in inside}
    named = ", ".join(f"{count} {name}" for name, count in sorted(kinds.items()))
    return f"{named}; embeddings, norms, head and adapters in {' and '.join(sorted(rest))}"
