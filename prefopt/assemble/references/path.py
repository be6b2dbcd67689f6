"""``{path: ...}``: another model, held beside the policy or, with ``cached``, let go after one pass."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prefopt import demo
from prefopt.assemble.model import DTYPES
from prefopt.assemble.references.kind import Kind, Site, Skeletons
from prefopt.assemble.skeleton import skeleton_at
from prefopt.assemble.sources import WeightSource
from prefopt.errors import ModelError
from prefopt.policy import Policy
from prefopt.policy.files import VOCABULARIES
from prefopt.policy.load import load_adapter, load_config, load_model, load_tokenizer, skeleton_adapter
from prefopt.recipe.references import ReferenceModel
from prefopt.reference import CachedReference, FrozenReference, Reference

log = logging.getLogger(__name__)


def describe(entry: ReferenceModel) -> str:
    """Name the model, and whether it stays."""
    return f"{entry.path}, cached" if entry.cached else entry.path


def check(entry: ReferenceModel, key: str, tokenizer: Any, *, is_sharded: bool) -> None:
    """Refuse a model that is missing or cannot be compared with.

    Raises:
        ModelError: the model is missing, of a kind that is not supported, or has another tokenizer.
    """
    if not demo.is_builtin(entry.path):
        load_config(entry.path, key=f"{key}.path", revision=entry.revision)
    note = check_tokenizer(entry, tokenizer, key)
    if note is not None:
        log.warning(note)


def build(entry: ReferenceModel, key: str, site: Site) -> Reference:
    """Load the model and prove that it scores packed rows exactly, as the policy is proven.

    Raises:
        ModelError: it does not, or cannot be loaded.
    """
    policy = site.frozen(load(entry, key, DTYPES[site.settings.dtype], site.start.seed))
    try:
        with site.engine.autocast():
            policy.self_check()
    except ModelError as error:
        raise ModelError(f"{key}.path: {entry.path!r}: {error}") from None
    reference = FrozenReference(policy, is_start=False)
    if not entry.cached:
        return reference
    return CachedReference(site.score(reference), is_start=False)


def load(entry: ReferenceModel, key: str, dtype: torch.dtype, seed: int) -> Any:
    """Load the model with its adapter.

    Args:
        entry: names both.
        key: the setting that names the reference, for errors.
        dtype: of the weights.
        seed: of a model that is built in.
    """
    if demo.is_builtin(entry.path):
        model: Any = demo.build_model(entry.path, seed)
        model = model.to(dtype)
    else:
        model = load_model(entry.path, dtype=dtype, key=f"{key}.path", revision=entry.revision)
    if entry.adapter is None:
        return model
    return load_adapter(model, entry.adapter, key=f"{key}.adapter")


def sources(entry: ReferenceModel, key: str) -> Iterator[WeightSource]:
    """Name the model and its adapter."""
    yield WeightSource(f"{key}.path", entry.path, entry.revision)
    if entry.adapter is not None:
        yield WeightSource(f"{key}.adapter", entry.adapter, is_adapter=True)


def footprint(entry: ReferenceModel, key: str, skeletons: Skeletons) -> nn.Module | None:
    """Build the model's skeleton where the model stays."""
    if entry.cached:
        return None
    dtype = DTYPES[skeletons.settings.dtype]
    model = skeleton_at(entry.path, f"{key}.path", dtype, revision=entry.revision)
    if entry.adapter is not None:
        model = skeleton_adapter(model, entry.adapter, key=f"{key}.adapter")
    return Policy(model).model


def check_tokenizer(entry: ReferenceModel, tokenizer: Any, key: str = "reference") -> str | None:
    """Refuse a model to which the policy's token ids mean other text.

    Args:
        entry: names the model.
        tokenizer: of the policy; tokens or ids that one of the two alone knows may differ.
        key: the setting that names the reference, for errors.

    Returns:
        What could not be compared, if so.

    Raises:
        ModelError: names the first token or id that differs.
    """
    path = entry.path
    if demo.is_builtin(path):
        other = demo.build_tokenizer()
    elif Path(path).is_dir() and not any(file for name in VOCABULARIES for file in Path(path).glob(name)):
        return (
            f"{key}.path: {path!r} holds no tokenizer, so it is taken to read token ids as model.path does."
        )
    else:
        other = load_tokenizer(path, key=f"{key}.path", revision=entry.revision)
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


KIND: Kind[ReferenceModel] = Kind(
    describe=describe,
    build=build,
    footprint=footprint,
    check=check,
    sources=sources,
    is_live=lambda entry: not entry.cached,
)
