"""From a recipe to models whose weights take no memory: built from their configurations alone."""

from __future__ import annotations

from typing import Any

import torch

from prefopt import demo
from prefopt.assemble.model import DTYPES, REFERENCE_ADAPTER, Start, files_of, ready, with_lora
from prefopt.errors import ModelError
from prefopt.policy import Policy
from prefopt.policy.load import load_config, skeleton, skeleton_adapter


def skeleton_of(start: Start) -> Policy:
    """Build the model to train as ``policy_of`` does, but with weights that take no memory."""
    settings = start.settings
    base = skeleton_at(settings.path, "model.path", DTYPES[settings.dtype], **files_of(settings))
    model = base
    if settings.lora is not None:
        with torch.device("meta"):
            model = with_lora(base, settings.lora, start.seed)
    elif settings.adapter is not None:
        model = skeleton_adapter(base, settings.adapter, key="model.adapter", is_trainable=True)
        if start.keeps_adapter:
            skeleton_adapter(model, settings.adapter, key="model.adapter", name=REFERENCE_ADAPTER)
    return ready(settings, base, model, compile_for=None)


def skeleton_at(path: str, key: str, dtype: torch.dtype, **files: Any) -> Any:
    """Build the model at a path with weights that take no memory.

    Args:
        path: hub id, local folder or builtin:tiny.
        key: the setting that names it, for errors.
        dtype: of the weights.
        files: which of the model's files to read, as ``load_config`` takes it.

    Raises:
        ModelError: it cannot be found, or stores its weights in few bits.
    """
    if demo.is_builtin(path):
        with torch.device("meta"):
            return demo.build_model(path).to(dtype)  # type: ignore[arg-type]
    config = load_config(path, key=key, **files)
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(f"{key}: {path!r} stores its weights quantised, so their memory is not planned.")
    return skeleton(config, dtype=dtype, trust_remote_code=bool(files.get("trust_remote_code")))
