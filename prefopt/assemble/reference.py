"""From a recipe to what the policy is compared with: one reference, one that moves, or several."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from prefopt import demo
from prefopt.assemble import model as build_model
from prefopt.assemble.loss import BoundLoss
from prefopt.assemble.model import DTYPES, REFERENCE_ADAPTER, references_of
from prefopt.engine import Engine
from prefopt.errors import ModelError, RecipeError
from prefopt.policy import Policy
from prefopt.policy.load import load_adapter, load_config, load_model, load_tokenizer
from prefopt.recipe import MovingReference as Moving
from prefopt.recipe import Recipe, ReferenceModel
from prefopt.reference import (
    AdapterOffReference,
    CachedReference,
    FrozenAdapterReference,
    FrozenReference,
    LiveReference,
    MovingReference,
    Reference,
    SelfReference,
    SeveralReferences,
)
from prefopt.reference.cache import LogpCache
from prefopt.trainer.weighting import TokenMasks
from prefopt.types import LEARNED_MASKS

log = logging.getLogger(__name__)

_VOCABULARIES = ("tokenizer*", "vocab*", "*.model", "spiece*", "*.tiktoken")
"""Files of which any tokenizer has one."""

Score = Callable[[Reference], LogpCache]
"""Run a reference over all data once."""


def describe(recipe: Recipe) -> str:
    """Say in a few words what a loss that needs a reference is compared with."""
    return " and ".join(map(_describe, references_of(recipe)))


def _describe(entry: str | ReferenceModel | Moving) -> str:
    if isinstance(entry, str):
        return entry
    if isinstance(entry, Moving):
        return f"moving (every {entry.every} steps, mix {entry.mix:g})"
    return f"{entry.path}, cached" if entry.cached else entry.path


def check_references(recipe: Recipe, loss: BoundLoss, tokenizer: Any) -> None:
    """Refuse a reference by path that is missing or cannot be compared with, before data or weights are read.

    Args:
        recipe: names the reference, or several.
        loss: says whether a reference is needed.
        tokenizer: of the policy.

    Raises:
        ModelError: the reference is missing, of a kind that is not supported, or has another tokenizer.
    """
    if not loss.contract.needs_reference:
        return
    for key, entry in _by_key(recipe).items():
        if isinstance(entry, ReferenceModel):
            if not demo.is_builtin(entry.path):
                load_config(entry.path, key=f"{key}.path", revision=entry.revision)
            note = check_tokenizer(entry, tokenizer, key)
            if note is not None:
                log.warning(note)


def _by_key(recipe: Recipe) -> dict[str, str | ReferenceModel | Moving]:
    """Return each reference by the setting that names it."""
    entries = references_of(recipe)
    return (
        {f"reference.{i}": each for i, each in enumerate(entries)}
        if len(entries) > 1
        else {"reference": entries[0]}
    )


def reference_of(
    recipe: Recipe,
    policy: Policy,
    engine: Engine,
    loss: BoundLoss,
    score: Score,
    *,
    is_resumed: bool = False,
) -> Reference | None:
    """Build what the policy is compared with.

    A reference of its own weights is proven to score packed rows exactly, as the policy is.

    Args:
        recipe: names the reference, or several.
        policy: placed, but not yet wrapped for the engine.
        engine: places the reference.
        loss: says whether a reference is needed, and which statistics of it.
        score: runs a reference over all data once, for ``cached``.
        is_resumed: the policy's weights are no longer those that training started from.

    Raises:
        ModelError: the reference cannot be loaded or scored exactly.
        RecipeError: a reference that moves while the weights are spread over ranks.
    """
    if not loss.contract.needs_reference:
        return None
    built = [
        _one(entry, key, recipe, policy, engine, score, is_resumed) for key, entry in _by_key(recipe).items()
    ]
    return built[0] if len(built) == 1 else SeveralReferences(built)


def _one(
    entry: str | ReferenceModel | Moving,
    key: str,
    recipe: Recipe,
    policy: Policy,
    engine: Engine,
    score: Score,
    is_resumed: bool,
) -> Reference:
    match entry:
        case ReferenceModel():
            reference = _by_path(entry, key, recipe, engine)
            if not entry.cached:
                return reference
            return CachedReference(score(reference), is_start=False, device=engine.device)
        case Moving():
            return _moving(entry, recipe, engine)
        case "adapter_off":
            is_start = recipe.model.adapter is None
            return AdapterOffReference(policy, is_start=is_start)
        case "initial":
            return _initial(recipe, policy, engine)
        case "cached":
            # a policy that has not moved yet is its own reference, so no second model is loaded
            source = _initial(recipe, policy, engine) if is_resumed else SelfReference(policy)
            return CachedReference(score(source), is_start=True, device=engine.device)
    raise AssertionError(f"unknown reference {entry!r}")


def masks_of(recipe: Recipe, loss: BoundLoss, reference: Reference | None) -> TokenMasks | None:
    """Build the module that learns token weights, where the loss asks for them.

    Args:
        recipe: its seed draws the first weights.
        loss: says which masks it reads.
        reference: its hidden states are what the weights are made from.
    """
    wanted = set(LEARNED_MASKS) & set(loss.contract.row_stats)
    if not wanted or not isinstance(reference, LiveReference):
        return None
    torch.manual_seed(recipe.seed)
    return TokenMasks(*reference.policy.depth_and_width, wanted)


def check_tokenizer(reference: ReferenceModel, tokenizer: Any, key: str = "reference") -> str | None:
    """Refuse a ``reference: {path: ...}`` to which the policy's token ids mean other text.

    Args:
        reference: names its model.
        tokenizer: of the policy; tokens or ids that one of the two alone knows may differ.
        key: the setting that names the reference, for errors.

    Returns:
        What could not be compared, if so.

    Raises:
        ModelError: names the first token or id that differs.
    """
    path = reference.path
    if demo.is_builtin(path):
        other = demo.build_tokenizer()
    elif Path(path).is_dir() and not any(file for name in _VOCABULARIES for file in Path(path).glob(name)):
        return (
            f"{key}.path: {path!r} holds no tokenizer, so it is taken to read token ids as model.path does."
        )
    else:
        other = load_tokenizer(path, key=f"{key}.path", revision=reference.revision)
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
            f"{key}.path: {path!r} has another tokenizer than model.path: id {index} is {found} there and "
            f"{token!r} here ({len(changed)} ids differ). Choose a reference with the policy's tokenizer."
        )
    return None


def _by_path(reference: ReferenceModel, key: str, recipe: Recipe, engine: Engine) -> FrozenReference:
    policy = _frozen(_load(reference, key, recipe), engine, recipe)
    try:
        with engine.autocast():
            policy.self_check()
    except ModelError as error:
        raise ModelError(f"{key}.path: {reference.path!r}: {error}") from None
    return FrozenReference(policy, is_start=False)


def _initial(recipe: Recipe, policy: Policy, engine: Engine) -> Reference:
    if recipe.model.adapter is not None:
        return FrozenAdapterReference(policy, adapter=REFERENCE_ADAPTER)
    if recipe.model.lora is not None:
        return AdapterOffReference(policy, is_start=True)
    start = build_model.load_start(recipe)
    return FrozenReference(_frozen(start, engine, recipe), is_start=True)


def _moving(settings: Moving, recipe: Recipe, engine: Engine) -> MovingReference:
    """Copy the policy as it is at the start of training, adapter included."""
    if engine.sharding is not None:
        raise recipe.located(
            RecipeError(
                "reference.name: moving keeps a whole copy of the weights on every rank, but FSDP2 spreads them. "
                "Launch with plain data parallel, or choose another reference."
            )
        )
    copy = build_model.policy_of(recipe)
    copy.place(engine)
    return MovingReference(copy, every=settings.every, mix=settings.mix)


def _load(reference: ReferenceModel, key: str, recipe: Recipe) -> Any:
    dtype = DTYPES[recipe.model.dtype]
    if demo.is_builtin(reference.path):
        model: Any = demo.build_model(reference.path, recipe.seed)
        model = model.to(dtype)
    else:
        model = load_model(reference.path, dtype=dtype, key=f"{key}.path", revision=reference.revision)
    if reference.adapter is None:
        return model
    return load_adapter(model, reference.adapter, key=f"{key}.adapter")


def _frozen(model: Any, engine: Engine, recipe: Recipe) -> Policy:
    policy = Policy(model, attention=recipe.model.attention, compile_for=build_model.compiled_tokens(recipe))
    policy.place(engine)
    return policy
