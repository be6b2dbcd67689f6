"""From a recipe to the objects of a run; the only place that branches on what a recipe names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from prefopt import demo
from prefopt.build_loss import BoundLoss, build_loss
from prefopt.cache import LogpCache
from prefopt.data.choose import Structure
from prefopt.data.loader import stream
from prefopt.data.plan import Plan
from prefopt.data.prepare import Prepared, prepare
from prefopt.data.report import DataReport
from prefopt.data.rows import Source
from prefopt.data.table import GroupTable
from prefopt.distributed import Engine
from prefopt.errors import ModelError, RecipeError
from prefopt.optim import OptimSettings
from prefopt.policy import Policy, check_supported
from prefopt.recipe import DataSource, Recipe, ReferenceModel, parse_recipe
from prefopt.reference import (
    AdapterOffReference,
    CachedReference,
    FrozenAdapterReference,
    FrozenReference,
    Reference,
    fill_cache,
)
from prefopt.strict_yaml import dump_yaml

REFERENCE_ADAPTER = "reference"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Data:
    """Tokenized groups to train on and to evaluate on, and what was found on the way."""

    train: GroupTable
    held_out: GroupTable | None
    report: DataReport
    eval_report: DataReport | None = None


def quiet_libraries() -> None:
    """Leave the terminal to the run's own lines: no bars for reading or writing weight files."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def cache_folder() -> Path:
    """Return where tokenized data is kept between runs: $PREFOPT_CACHE, or ~/.cache/prefopt."""
    if folder := os.environ.get("PREFOPT_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "prefopt"


def loss_of(recipe: Recipe) -> BoundLoss:
    """Build the recipe's loss and refuse a reference that it would not use."""
    try:
        loss = build_loss(recipe.loss)
    except RecipeError as error:
        raise recipe.located(error) from None
    reference = recipe.reference
    if not loss.contract.needs_reference and reference not in (None, "none"):
        raise recipe.located(
            RecipeError(
                f"reference: {loss.contract.name} uses no reference, so {_short(reference)} has no effect. "
                f"Take the line out."
            )
        )
    if loss.contract.needs_reference and reference == "none":
        raise recipe.located(
            RecipeError(
                f"reference: {loss.contract.name} compares with a reference, but it is none. "
                f"Leave the line out for the start weights, or name one."
            )
        )
    return loss


def tokenizer_of(recipe: Recipe) -> Any:
    """Load the tokenizer that belongs to the recipe's model."""
    path = recipe.model.path
    if demo.is_builtin(path):
        return demo.build_tokenizer()
    try:
        return AutoTokenizer.from_pretrained(
            path, revision=recipe.model.revision, trust_remote_code=recipe.model.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise _unreachable("model.path", path, error) from None


def data_of(recipe: Recipe, tokenizer: Any, loss: BoundLoss, *, use_cache: bool = True) -> Data:
    """Read, check and tokenize the recipe's rows, and set the held-out part aside.

    Raises:
        DataError: a source cannot be read, or its rows cannot serve the loss.
    """
    main = _prepare(recipe, recipe.data, tokenizer, loss, use_cache)
    if recipe.eval is None:
        return Data(main.table, None, main.report)
    if recipe.eval.data is not None:
        other = _prepare(recipe, recipe.eval.data, tokenizer, loss, use_cache)
        return Data(main.table, other.table, main.report, other.report)
    assert recipe.eval.split is not None
    train, held_out = split_table(main.table, recipe.eval.split, recipe.seed)
    return Data(train, held_out, main.report)


def split_table(table: GroupTable, share: float, seed: int) -> tuple[GroupTable, GroupTable]:
    """Set ``share`` of the groups aside by a digest of their prompt; equal prompts stay on one side."""
    ranks = _prompt_ranks(table, seed)
    wanted = max(1, round(share * len(table)))
    border = np.partition(ranks, wanted - 1)[wanted - 1]
    held_out = np.flatnonzero(ranks <= border)
    rest = np.flatnonzero(ranks > border)
    if len(rest) == 0:
        raise RecipeError(
            f"eval.split: {share:g} of {len(table)} rows leaves nothing to train on, since equal prompts stay "
            f"together. Give more rows, or eval.data."
        )
    return table.select(rest), table.select(held_out)


def plan_of(recipe: Recipe, table: GroupTable, loss: BoundLoss, world: int) -> Plan:
    """Plan the optimizer steps over the training groups."""
    return Plan(
        sizes=table.sizes(recipe.batch.share_prompts),
        units_per_step=recipe.batch.pairs_per_step,
        tokens_per_batch=recipe.batch.tokens_per_batch,
        unit=loss.contract.structure,
        seed=recipe.seed,
        world=world,
        source_of=table.source_of,
        source_weights=table.source_weights,
    )


def eval_plan_of(recipe: Recipe, table: GroupTable, loss: BoundLoss, world: int) -> Plan:
    """Plan one pass over the held-out groups, in order, each once."""
    return Plan(
        sizes=table.sizes(recipe.batch.share_prompts),
        units_per_step=max(recipe.batch.pairs_per_step, 64),
        tokens_per_batch=recipe.batch.tokens_per_batch,
        unit=loss.contract.structure,
        world=world,
        shuffle=False,
    )


def num_steps(recipe: Recipe, plan: Plan) -> int:
    """Return the optimizer steps of the whole run."""
    if recipe.train.steps is not None:
        return recipe.train.steps
    assert recipe.train.epochs is not None
    return plan.num_steps(recipe.train.epochs)


def optim_of(recipe: Recipe) -> OptimSettings:
    """Translate the recipe's ``optim`` block."""
    return OptimSettings(**recipe.optim.model_dump())


def engine_of(recipe: Recipe) -> Engine:
    """Join the process group and choose the device."""
    return Engine(autocast=_DTYPES[recipe.model.autocast] if recipe.model.autocast else None)


def default_device() -> torch.device:
    """Return the first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def scoring_recipe(
    model: str, data: str, *, adapter: str | None, dtype: str, chat_template: str | None
) -> Recipe:
    """Return a recipe that names a model and data to score; nothing of it trains.

    Raises:
        RecipeError: a value that a recipe would refuse.
    """
    block = {"path": model, "dtype": dtype, "adapter": adapter, "chat_template": chat_template}
    text = dump_yaml(
        {
            "output": "unused",
            "model": {key: value for key, value in block.items() if value is not None},
            "data": {"path": data},
            "loss": {"name": "sft"},
            "optim": {"lr": 1.0},
        }
    )
    return parse_recipe(text, name="score")


def check_model(recipe: Recipe) -> None:
    """Refuse, from its config alone, a model that cannot be trained exactly.

    Raises:
        ModelError: the model is missing or of a kind that is not supported.
    """
    settings = recipe.model
    if not demo.is_builtin(settings.path):
        _config(settings.path, settings.revision, settings.trust_remote_code, "model.path")


def policy_of(recipe: Recipe, weights: Path | None = None) -> Policy:
    """Load the model to train, with its adapter, ready to score packed batches.

    Args:
        recipe: which model, in which dtype, with which adapter.
        weights: a ``model`` folder of a checkpoint to start from instead of the recipe's weights.
    """
    adapted = recipe.model.lora is not None or recipe.model.adapter is not None
    base = _load_model(recipe, None if adapted else weights)
    model = _with_adapter(recipe, base, weights) if adapted else base
    if recipe.model.checkpointing:
        _enable_checkpointing(base)
    try:
        return Policy(model, attention=recipe.model.attention, dropout=recipe.model.dropout)
    except RecipeError as error:
        raise recipe.located(error) from None


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

    Args:
        recipe: names the reference.
        policy: not yet wrapped for the engine.
        engine: places the reference.
        loss: says whether a reference is needed, and which statistics of it.
        score: runs a reference over all data once, for ``cached``.
        is_resumed: the policy's weights are no longer those that training started from.
    """
    if not loss.contract.needs_reference:
        return None
    match reference_name(recipe):
        case "path":
            assert isinstance(recipe.reference, ReferenceModel)
            return FrozenReference(_frozen(_load_reference(recipe, recipe.reference), engine), is_start=False)
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


class SelfReference:
    """Score with the policy itself before training has moved it."""

    is_start = True

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    @torch.no_grad()
    def __call__(self, batch: Any, *, stats: Any = ()) -> Any:
        was_training = self.policy.model.training
        self.policy.model.eval()
        try:
            return self.policy(batch, stats=stats).detach()
        finally:
            self.policy.model.train(was_training)


def score_all(
    reference: Reference,
    loss: BoundLoss,
    tables: list[tuple[GroupTable, Plan]],
    engine: Engine,
    share_prompts: bool,
    progress: Callable[[int], None],
) -> LogpCache:
    """Run a reference once over every group, spread over ranks, and hand all values to all ranks."""
    cache = LogpCache(loss.contract.reference_stats)

    def batches() -> Iterator[Any]:
        for table, plan in tables:
            for step in stream(
                plan, table, start=0, stop=plan.num_steps(1), rank=engine.rank, share_prompts=share_prompts
            ):
                yield from (batch.to(engine.device) for batch in step.packs)

    with engine.autocast():
        fill_cache(cache, reference, batches(), progress)
    if engine.world > 1:
        keys, lengths, values = (engine.gather(part.to(engine.device)) for part in cache.flat())
        cache.add_flat(keys, lengths, values)
    return cache


def save_model(model: nn.Module, tokenizer: Any, folder: Path) -> None:
    """Write weights (or the trained adapter), tokenizer and generation settings in Hugging Face form."""
    if hasattr(model, "peft_config"):
        model.save_pretrained(str(folder), selected_adapters=["default"])  # type: ignore[operator]
    else:
        model.save_pretrained(str(folder))  # type: ignore[operator]
    tokenizer.save_pretrained(str(folder))


def _prepare(
    recipe: Recipe, sources: tuple[DataSource, ...], tokenizer: Any, loss: BoundLoss, use_cache: bool
) -> Prepared:
    return prepare(
        [_source(source) for source in sources],
        tokenizer,
        max_tokens=recipe.batch.max_tokens,
        truncate=recipe.rows.truncate,
        on_identical=recipe.rows.on_identical,
        on_tie=recipe.rows.on_tie,
        structure=cast(Structure, loss.contract.structure),
        chat_template=recipe.model.chat_template,
        cache_dir=cache_folder() / "tokenized" if use_cache else None,
    )


def _source(source: DataSource) -> Source:
    return Source(**source.model_dump())


def _prompt_ranks(table: GroupTable, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return a number for each group that depends on its first prompt and the seed alone, int64 [G]."""
    start = seed.to_bytes(8, "little")
    firsts = table.group_prompts[:-1]
    bounds = zip(table.prompt_starts[firsts].tolist(), table.prompt_starts[firsts + 1].tolist(), strict=True)
    ids = table.prompt_ids
    digests = (blake2b(start + ids[low:high].tobytes(), digest_size=7).digest() for low, high in bounds)
    return np.array([int.from_bytes(digest, "little") for digest in digests], dtype=np.int64)


def _load_model(recipe: Recipe, weights: Path | None) -> Any:
    settings = recipe.model
    if demo.is_builtin(settings.path) and weights is None:
        model = demo.build_model(recipe.seed)
        return model.to(_DTYPES[settings.dtype])
    return _from_pretrained(
        str(weights) if weights else settings.path,
        dtype=_DTYPES[settings.dtype],
        revision=None if weights else settings.revision,
        trust_remote_code=settings.trust_remote_code,
        key="model.path",
    )


def _from_pretrained(
    path: str, *, dtype: torch.dtype, revision: str | None, trust_remote_code: bool, key: str
) -> Any:
    config = _config(path, revision, trust_remote_code, key)
    try:
        return AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise _unreachable(key, path, error) from None


def _config(path: str, revision: str | None, trust_remote_code: bool, key: str) -> Any:
    try:
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise _unreachable(key, path, error) from None
    check_supported(config)
    return config


def _with_adapter(recipe: Recipe, base: Any, weights: Path | None) -> Any:
    """Put the trained adapter on the base, and beside it the frozen one where that is the reference."""
    from peft import LoraConfig, PeftModel, get_peft_model

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
    try:
        model = PeftModel.from_pretrained(base, source, is_trainable=True)
        if settings.adapter is not None and reference_name(recipe) in ("initial", "cached"):
            model.load_adapter(settings.adapter, adapter_name=REFERENCE_ADAPTER, is_trainable=False)
            model.set_adapter("default")
    except (OSError, ValueError, KeyError) as error:
        raise _unreachable("model.adapter", source, error) from None
    return model


def _enable_checkpointing(model: Any) -> None:
    """Recompute activations in the backward pass; the method was renamed within transformers 5."""
    # the non-reentrant form needs no input with a gradient, so adapters work without further hooks
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable({"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable({"use_reentrant": False})


def _initial(recipe: Recipe, policy: Policy, engine: Engine) -> Reference:
    if recipe.model.adapter is not None:
        return FrozenAdapterReference(policy, adapter=REFERENCE_ADAPTER, unwrap=engine.unwrap)
    if recipe.model.lora is not None:
        return AdapterOffReference(policy, is_start=True, unwrap=engine.unwrap)
    return FrozenReference(_frozen(_load_model(recipe, None), engine, recipe.model.attention), is_start=True)


def _load_reference(recipe: Recipe, reference: ReferenceModel) -> Any:
    if demo.is_builtin(reference.path):
        model = demo.build_model(recipe.seed).to(_DTYPES[recipe.model.dtype])
    else:
        model = _from_pretrained(
            reference.path,
            dtype=_DTYPES[recipe.model.dtype],
            revision=reference.revision,
            trust_remote_code=False,
            key="reference.path",
        )
    if reference.adapter is None:
        return model
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, reference.adapter)
    except (OSError, ValueError, KeyError) as error:
        raise _unreachable("reference.adapter", reference.adapter, error) from None


def _frozen(model: Any, engine: Engine, attention: str = "auto") -> Policy:
    return Policy(engine.place(model), attention=attention)


def _unreachable(key: str, path: str, error: Exception) -> ModelError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelError(
        f"{key}: {path!r} cannot be loaded ({first[:200]}). Give a hub id you can reach, or a local folder."
    )


def _short(value: Any) -> str:
    return value if isinstance(value, str) else f"{{path: {value.path}}}"
