"""The schema of a recipe: every setting of a run, its type, its legal values and its default.

``load_recipe`` reads a YAML file and ``key.path=value`` overrides into frozen models. Nothing is
accepted that is not written below, nothing is converted, and every mistake is one line that names its
place. The ``loss`` block stays a plain mapping; losses check their own settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from prefopt.errors import PrefoptError, RecipeError
from prefopt.recipe.blocks import Block, Count, Decay, ShareOrCount, Text, wrong
from prefopt.recipe.explain import explain, missing_file, no_choice
from prefopt.recipe.names import Schema
from prefopt.recipe.optim import Optim
from prefopt.recipe.overrides import apply_overrides
from prefopt.recipe.references import FROM_START, Entry, References, check_fit
from prefopt.recipe.strict_yaml import Document, dump_yaml, parse_yaml, read_yaml

AnyError = TypeVar("AnyError", bound=PrefoptError)

Tracker = Literal[
    "tensorboard", "wandb", "trackio", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab"
]


def _some(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise wrong("is an empty list. Give at least one entry.")
    return values


def _listed(value: Any) -> Any:
    """Let one source stand without a list around it."""
    return [value] if isinstance(value, dict) else value


class Lora(Block):
    """A new low-rank adapter; the weights of the model stay frozen."""

    rank: Count = 16
    """Inner dimension of every adapter."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The adapter's output is scaled by alpha / rank."""
    targets: Annotated[
        Annotated[Literal["all-linear"], Tag("<name>")]
        | Annotated[tuple[Text, ...], Field(strict=False), AfterValidator(_some), Tag("<list>")],
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


_HEX = frozenset("0123456789abcdef")
TILE = 128
"""Rows of compiled layers are multiples of it, as tiles of matrix products are."""


def _layouts() -> tuple[str, ...]:
    # the table loads torch, for which a recipe that names no layout need not wait
    from prefopt.data.rows.layouts.table import LAYOUTS

    return ("auto", *LAYOUTS)


def _is_layout(name: str) -> str:
    if name != "auto" and name not in _layouts():
        raise wrong(no_choice(name, _layouts()))
    return name


def _layout_names(schema: dict[str, Any]) -> None:
    schema["enum"] = list(_layouts())


class DataSource(Block):
    """One source of rows."""

    path: Text
    """Hub id, a .jsonl .json .csv .parquet .arrow file (text also .gz), or a builtin: task."""
    split: Text | None = None
    """Split of a hub data set."""
    subset: Text | None = None
    """Configuration of a hub data set."""
    revision: Text | None = None
    """Branch, tag or commit of a hub data set."""
    limit: Count | None = None
    """Read at most this many rows, the first ones."""
    columns: dict[str, Text] | None = None
    """What prefopt expects: what the column is called here."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """How often an epoch draws each row, on average."""
    layout: Annotated[str, AfterValidator(_is_layout), Field(json_schema_extra=_layout_names)] = "auto"
    """Shape of the rows."""


Sources = Annotated[
    tuple[DataSource, ...], Field(strict=False), BeforeValidator(_listed), AfterValidator(_some)
]


class Rows(Block):
    """What happens to rows that cannot be used as they are."""

    max_bad: ShareOrCount = 0.01
    """Stop when more rows than this are bad: a share below 1, else a count."""
    on_identical: Literal["drop", "keep", "error"] = "drop"
    """Pairs whose two answers are the same tokens."""
    on_tie: Literal["drop", "keep", "error"] = "drop"
    """Answers with the same score."""
    truncate: Literal["keep_start", "keep_end", "drop", "error"] = "keep_start"
    """Rows beyond batch.max_tokens: cut the answers' tails, cut the prompt's head first, drop or refuse."""
    turns: Literal["all", "assistant"] = "all"
    """Score all of an answer of several turns, or only what its assistant turns say."""


class Eval(Block):
    """Held-out evaluation while training, and what follows from it."""

    split: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the training data that is held out."""
    data: Sources | None = None
    """Sources of their own instead of a share."""
    every: Count = 100
    """Optimizer steps between two evaluations; the last step is always evaluated."""
    metric: Literal["loss", "reward/accuracy", "reward/margin"] = "loss"
    """What best and patience go by; a loss should fall, the others rise."""
    best: bool = False
    """Finish with the weights of the best evaluation instead of the last ones."""
    patience: Count | None = None
    """Stop after this many evaluations in a row without a better one."""

    @model_validator(mode="after")
    def _check(self) -> Eval:
        if (self.split is None) == (self.data is None):
            raise wrong(
                "needs either split (a share of the training data) or data (its own sources), not both."
            )
        if self.metric != "loss" and not self.best and self.patience is None:
            raise wrong("has no effect without eval.best or eval.patience. Set one of them.", "metric")
        return self


class Batch(Block):
    """How much goes into one optimizer step and into one forward pass."""

    pairs_per_step: Count = 64
    """Pairs (or answers, or lists: what the loss is paid for) per optimizer step, over all processes."""
    tokens_per_batch: Count = 16384
    """Most tokens in one forward pass; sets memory and speed, never the result."""
    max_tokens: Annotated[int, Field(ge=2)] | None = 2048
    """Longest prompt plus answer; longer ones are truncated. null: no limit."""
    share_prompts: bool = True
    """Compute each prompt once for all its answers. Exact; false is for comparison."""


class Train(Block):
    """How long to train and what to write on the way."""

    epochs: Count | None = None
    """Passes over the data; 1 unless steps is given."""
    steps: Count | None = None
    """Optimizer steps, instead of epochs."""
    save_every: Count | None = 200
    """Optimizer steps between two checkpoints. null: only at the end and when interrupted."""
    keep: Count = 2
    """Checkpoints that stay on disk, the newest ones; the best one stays besides."""
    log_every: Count = 1
    """Optimizer steps between two lines on the terminal and to trackers; metrics.jsonl has them all."""
    on_nonfinite: Literal["abort", "skip"] = "abort"
    """What a NaN or infinity leads to; the weights are never touched by it."""

    @model_validator(mode="before")
    @classmethod
    def _one_epoch(cls, block: Any) -> Any:
        if isinstance(block, dict) and block.get("epochs") is None and block.get("steps") is None:
            return {**block, "epochs": 1}
        return block

    @model_validator(mode="after")
    def _check(self) -> Train:
        if self.epochs is not None and self.steps is not None:
            raise wrong(
                f"epochs ({self.epochs}) and steps ({self.steps}) are both given. Keep one; on the command "
                f"line, train.epochs=null takes the other away."
            )
        return self


class Recipe(Block):
    """Everything that decides a run."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of the order of the data, new adapters and dropout."""
    output: Text
    """Folder for checkpoints, metrics and the final model."""
    model: Model
    """The model to train and how it computes."""
    reference: References | None = None
    """A name, {path: ...}, {name: moving} or a list. Left out: adapter_off with lora, else initial."""
    data: Sources
    """Rows to train on: one source or a list."""
    rows: Rows = Rows()
    """What happens to rows that cannot be used as they are."""
    eval: Eval | None = None
    """Held-out evaluation: split or data, and how often. Left out: none."""
    loss: dict[str, Any]
    """name and the settings of that loss; `prefopt losses NAME` lists them."""
    batch: Batch = Batch()
    """How much goes into one optimizer step and into one forward pass."""
    optim: Optim
    """The optimizer and its learning rate."""
    train: Train = Train(epochs=1)
    """How long to train and what to write on the way."""
    track: Annotated[tuple[Tracker, ...], Field(strict=False)] = ()
    """Trackers that get the metrics besides metrics.jsonl."""

    _document: Document = PrivateAttr(default=Document(value=None, places={}, name="recipe"))

    @field_validator("loss")
    @classmethod
    def _named(cls, loss: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(loss.get("name"), str):
            raise wrong("names no loss. Write name: dpo, say; `prefopt losses` lists all.")
        return loss

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        check_fit(
            self.references, trains_adapter=self.model.lora is not None or self.model.adapter is not None
        )
        tokens = self.batch.tokens_per_batch
        if self.model.compile and tokens % TILE:
            raise wrong(
                f"tokens_per_batch is {tokens}, but model.compile needs a multiple of {TILE}. "
                f"Write {max(1, round(tokens / TILE)) * TILE}.",
                "batch",
            )
        return self

    @property
    def references(self) -> tuple[Entry, ...]:
        """What a loss that needs a reference compares with, the default filled in: one entry, several, or none."""
        if isinstance(self.reference, tuple):
            return self.reference
        if self.reference == "none":
            return ()
        if self.reference is not None:
            return (self.reference,)
        return ("adapter_off",) if self.model.lora is not None else ("initial",)

    @property
    def keeps_start_adapter(self) -> bool:
        """Whether the adapter that training goes on from also stays as it is, for a reference."""
        return self.model.adapter is not None and not FROM_START.isdisjoint(self.references)

    def __eq__(self, other: object) -> bool:
        # where a setting was written is not part of what it says
        return isinstance(other, Recipe) and self.resolved() == other.resolved()

    __hash__ = None  # type: ignore[assignment]

    def resolved(self) -> dict[str, Any]:
        """Return all settings, defaults included, as plain dicts, lists and scalars."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """Return the resolved recipe as YAML that ``parse_recipe`` reads back to an equal recipe."""
        return dump_yaml(self.resolved())

    def located(self, error: AnyError) -> AnyError:
        """Return ``error`` with the file, line and column of the setting that its message begins with."""
        message = str(error)
        key = message.split(":", 1)[0]
        path = tuple(int(part) if part.isdigit() else part for part in key.split("."))
        return type(error)(f"{self._document.place(path)}: {message}")


SCHEMA = Schema.of(Recipe)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply ``key.path=value`` overrides.

    Raises:
        RecipeError: the file, an override or a setting is wrong; one line for each mistake.
    """
    if not Path(path).is_file():
        raise missing_file(Path(path))
    return _validated(read_yaml(path), overrides)


def parse_recipe(text: str, overrides: Sequence[str] = (), name: str = "recipe") -> Recipe:
    """Read a recipe from YAML text; ``name`` stands for the file in errors.

    Raises:
        RecipeError: the text, an override or a setting is wrong; one line for each mistake.
    """
    return _validated(parse_yaml(text, name), overrides)


def _validated(document: Document, overrides: Sequence[str]) -> Recipe:
    if document.value is None:
        raise RecipeError(f"{document.name}: is empty. Start from one of the files in recipes/.")
    if not isinstance(document.value, dict):
        raise RecipeError(
            f"{document.name}:1:1: a recipe is a list of `key: value` blocks, not a bare value."
        )
    document = apply_overrides(document, overrides)
    try:
        recipe = Recipe.model_validate(document.value)
    except ValidationError as error:
        lines = explain(error.errors(include_url=False), document, SCHEMA)
        raise RecipeError("\n".join(lines)) from None
    recipe._document = document
    return recipe
