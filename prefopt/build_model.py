"""From a recipe to models: tokenizer, policy, reference, and how they are saved."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from prefopt import demo
from prefopt.build_loss import BoundLoss
from prefopt.cache import LogpCache
from prefopt.data.tokenize import Renderer
from prefopt.distributed import Engine
from prefopt.errors import ModelError, RecipeError
from prefopt.policy import Policy, quantize
from prefopt.policy.load import load_adapter, load_config, load_model, load_tokenizer
from prefopt.policy.quantize import is_quantized
from prefopt.recipe import Model, Recipe, ReferenceModel
from prefopt.reference import (
    AdapterOffReference,
    CachedReference,
    FrozenAdapterReference,
    FrozenReference,
    Reference,
    SelfReference,
)

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
REFERENCE_ADAPTER = "reference"
_VOCABULARIES = ("tokenizer*", "vocab*", "*.model", "spiece*", "*.tiktoken")
"""Files of which any tokenizer has one."""


def quiet_libraries() -> None:
    """Leave the terminal to the run's own lines: no bars for reading or writing weight files."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # it says at every product that int8 inputs pass through float16
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


def default_device() -> torch.device:
    """Return the first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_model(recipe: Recipe) -> None:
    """Refuse, from its config alone, a model that cannot be trained exactly.

    Raises:
        ModelError: the model is missing or of a kind that is not supported.
    """
    settings = recipe.model
    if not demo.is_builtin(settings.path):
        load_config(settings.path, key="model.path", **_source(settings))


def tokenizer_of(recipe: Recipe) -> Any:
    """Load the tokenizer that belongs to the recipe's model."""
    settings = recipe.model
    if demo.is_builtin(settings.path):
        return _with_template(recipe, demo.build_tokenizer())
    return _with_template(recipe, load_tokenizer(settings.path, key="model.path", **_source(settings)))


def _with_template(recipe: Recipe, tokenizer: Any) -> Any:
    """Give the tokenizer the recipe's chat template, so that the saved model carries it."""
    if recipe.model.chat_template is not None:
        tokenizer.chat_template = Renderer(tokenizer, recipe.model.chat_template).template
    return tokenizer


def policy_of(recipe: Recipe, weights: Path | None = None) -> Policy:
    """Load the model to train, with its adapter, ready to score packed batches.

    Args:
        recipe: which model, in which dtype, with which adapter.
        weights: a ``model`` folder of a checkpoint to start from instead of the recipe's weights.
    """
    adapted = recipe.model.lora is not None or recipe.model.adapter is not None
    base = _load_model(recipe, None if adapted else weights)
    if is_quantized(base) and not adapted:
        raise recipe.located(
            ModelError(
                f"model.path: {recipe.model.path!r} stores its weights quantised, so they cannot be trained. "
                f"Set model.lora, or choose full weights."
            )
        )
    model = _with_adapter(recipe, base, weights) if adapted else base
    if recipe.model.checkpointing:
        _enable_checkpointing(base)
    try:
        return Policy(
            model,
            attention=recipe.model.attention,
            dropout=recipe.model.dropout,
            adapter_dropout=recipe.model.lora is not None,
            compile_for=_compiled_tokens(recipe),
        )
    except RecipeError as error:
        raise recipe.located(error) from None


def check_quantization(recipe: Recipe, engine: Engine) -> None:
    """Refuse ``model.quantization`` where this machine, this launch or this model cannot serve it.

    Raises:
        RecipeError: says what is missing.
    """
    settings = recipe.model
    if settings.quantization is None:
        return
    try:
        quantize.check_quantization(
            settings.quantization,
            engine.device,
            is_sharded=engine.sharding is not None,
            is_builtin=demo.is_builtin(settings.path),
        )
    except RecipeError as error:
        raise recipe.located(error) from None


def _compiled_tokens(recipe: Recipe) -> int | None:
    return recipe.batch.tokens_per_batch if recipe.model.compile else None


def reference_name(recipe: Recipe) -> str:
    """Return which reference a recipe means when its loss needs one."""
    if isinstance(recipe.reference, ReferenceModel):
        return "path"
    if recipe.reference is not None:
        return recipe.reference
    return "adapter_off" if recipe.model.lora is not None else "initial"


def reference_of(
    recipe: Recipe,
    policy: Policy,
    engine: Engine,
    loss: BoundLoss,
    score: Callable[[Reference], LogpCache],
    *,
    is_resumed: bool = False,
) -> Reference | None:
    """Build what the policy is compared with.

    A reference of its own weights is proven to score packed rows exactly, as the policy is.

    Args:
        recipe: names the reference.
        policy: placed, but not yet wrapped for the engine.
        engine: places the reference.
        loss: says whether a reference is needed, and which statistics of it.
        score: runs a reference over all data once, for ``cached``.
        is_resumed: the policy's weights are no longer those that training started from.

    Raises:
        ModelError: the reference cannot be loaded or scored exactly, or has another tokenizer.
    """
    if not loss.contract.needs_reference:
        return None
    match reference_name(recipe):
        case "path":
            return _by_path(recipe, engine)
        case "adapter_off":
            is_start = recipe.model.adapter is None
            return AdapterOffReference(policy, is_start=is_start, unwrap=engine.unwrap)
        case "initial":
            return _initial(recipe, policy, engine)
        case "cached":
            # a policy that has not moved yet is its own reference, so no second model is loaded
            source = _initial(recipe, policy, engine) if is_resumed else SelfReference(policy)
            return CachedReference(score(source), is_start=True, device=engine.device)
    raise AssertionError(f"unknown reference {recipe.reference!r}")


def check_reference_tokenizer(recipe: Recipe, tokenizer: Any) -> str | None:
    """Refuse a ``reference: {path: ...}`` to which the policy's token ids mean other text.

    Args:
        recipe: names the reference.
        tokenizer: of the policy; tokens or ids that one of the two alone knows may differ.

    Returns:
        What could not be compared, if so.

    Raises:
        ModelError: names the first token or id that differs.
    """
    assert isinstance(recipe.reference, ReferenceModel)
    path = recipe.reference.path
    if demo.is_builtin(path):
        other = demo.build_tokenizer()
    elif Path(path).is_dir() and not any(file for name in _VOCABULARIES for file in Path(path).glob(name)):
        return f"reference.path: {path!r} holds no tokenizer, so it is taken to read token ids as model.path does."
    else:
        other = load_tokenizer(path, key="reference.path", revision=recipe.reference.revision)
    ours, theirs = tokenizer.get_vocab(), other.get_vocab()
    ids = {index: token for token, index in theirs.items()}
    changed = {
        token: index
        for token, index in ours.items()
        if theirs.get(token, index) != index or ids.get(index, token) != token
    }
    if changed:
        token, index = min(changed.items(), key=lambda item: (item[1], item[0]))
        found = repr(ids[index]) if index in ids else "no token"
        raise ModelError(
            f"reference.path: {path!r} has another tokenizer than model.path: id {index} is {found} there and "
            f"{token!r} here ({len(changed)} ids differ). Choose a reference with the policy's tokenizer."
        )
    return None


def save_model(
    policy: Policy,
    model: nn.Module,
    tokenizer: Any,
    folder: Path,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write weights (or the trained adapter), tokenizer and generation settings in Hugging Face form.

    Args:
        policy: knows what it changed in the configuration for scoring.
        model: the policy's model without its engine's wrapper.
        tokenizer: saved beside it, chat template included.
        folder: made if missing.
        weights: whole ones in place of the model's own, which may be spread over ranks.
    """
    only: dict[str, Any] = {"selected_adapters": ["default"]} if hasattr(model, "peft_config") else {}
    if weights is not None:
        only["state_dict"] = dict(weights)
    with policy.own_config():
        model.save_pretrained(str(folder), **only)  # type: ignore[operator]
    tokenizer.save_pretrained(str(folder))


def _load_model(recipe: Recipe, weights: Path | None) -> Any:
    settings = recipe.model
    if demo.is_builtin(settings.path) and weights is None:
        model: Any = demo.build_model(settings.path, recipe.seed)
        return model.to(DTYPES[settings.dtype])
    dtype = DTYPES[settings.dtype]
    if weights is not None:
        return load_model(
            str(weights), dtype=dtype, key="model.path", trust_remote_code=settings.trust_remote_code
        )
    return load_model(
        settings.path,
        dtype=dtype,
        key="model.path",
        quantization=_quantization(settings),
        **_source(settings),
    )


def _quantization(settings: Model) -> Any:
    if settings.quantization is None:
        return None
    return quantize.settings_of(settings.quantization, DTYPES[settings.autocast or settings.dtype])


def _source(settings: Model) -> dict[str, Any]:
    return {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}


def _with_adapter(recipe: Recipe, base: Any, weights: Path | None) -> Any:
    """Put the trained adapter on the base, and beside it the frozen one where that is the reference."""
    from peft import LoraConfig, get_peft_model

    settings = recipe.model
    if settings.lora is not None and weights is None:
        lora = settings.lora
        targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,  # type: ignore[arg-type]
            target_modules=targets,
            lora_dropout=lora.dropout,
            task_type="CAUSAL_LM",
        )
        torch.manual_seed(recipe.seed)
        try:
            return get_peft_model(base, config)
        except ValueError as error:
            raise recipe.located(ModelError(f"model.lora.targets: {error}")) from None
    source = str(weights) if weights is not None else settings.adapter
    assert source is not None
    model = load_adapter(base, source, key="model.adapter", is_trainable=True)
    if settings.adapter is not None and reference_name(recipe) in ("initial", "cached"):
        load_adapter(model, settings.adapter, key="model.adapter", name=REFERENCE_ADAPTER)
        model.set_adapter("default")
    return model


def _enable_checkpointing(model: Any) -> None:
    """Recompute activations in the backward pass; the method was renamed within transformers 5."""
    # the non-reentrant form needs no input with a gradient, so adapters work without further hooks
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable({"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable({"use_reentrant": False})


def _by_path(recipe: Recipe, engine: Engine) -> Reference:
    assert isinstance(recipe.reference, ReferenceModel)
    note = check_reference_tokenizer(recipe, tokenizer_of(recipe))
    if note is not None:
        log.warning(note)
    policy = _frozen(recipe, _load_reference(recipe, recipe.reference), engine)
    try:
        with engine.autocast():
            policy.self_check()
    except ModelError as error:
        raise ModelError(f"reference.path: {recipe.reference.path!r}: {error}") from None
    return FrozenReference(policy, is_start=False)


def _initial(recipe: Recipe, policy: Policy, engine: Engine) -> Reference:
    if recipe.model.adapter is not None:
        return FrozenAdapterReference(policy, adapter=REFERENCE_ADAPTER, unwrap=engine.unwrap)
    if recipe.model.lora is not None:
        return AdapterOffReference(policy, is_start=True, unwrap=engine.unwrap)
    return FrozenReference(_frozen(recipe, _load_model(recipe, None), engine), is_start=True)


def _load_reference(recipe: Recipe, reference: ReferenceModel) -> Any:
    if demo.is_builtin(reference.path):
        model: Any = demo.build_model(reference.path, recipe.seed)
        model = model.to(DTYPES[recipe.model.dtype])
    else:
        model = load_model(
            reference.path,
            dtype=DTYPES[recipe.model.dtype],
            key="reference.path",
            revision=reference.revision,
        )
    if reference.adapter is None:
        return model
    return load_adapter(model, reference.adapter, key="reference.adapter")


def _frozen(recipe: Recipe, model: Any, engine: Engine) -> Policy:
    policy = Policy(model, attention=recipe.model.attention, compile_for=_compiled_tokens(recipe))
    policy.model = engine.place(policy.model)
    return policy
