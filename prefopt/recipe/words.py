"""The words around a recipe: overrides from the command line, and errors a person can act on.

Knows the schema only as a table of names (``Schema``), so that the words stay apart from the types.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from prefopt.errors import RecipeError
from prefopt.recipe.strict_yaml import Document, KeyPath, parse_value, resolve

COMMAND_LINE = "command line"

NOT_YET = {
    "model.router_aux": "the router loss is not supported in this version. Leave it out.",
}
"""Settings that are planned but not carried out, so they are refused by name."""

OTHER_NAMES = {
    "learning_rate": "optim.lr",
    "lr_scheduler_type": "optim.schedule",
    "lr_scheduler": "optim.schedule",
    "warmup_ratio": "optim.warmup",
    "warmup_steps": "optim.warmup",
    "max_grad_norm": "optim.clip",
    "num_train_epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "max_steps": "train.steps",
    "save_steps": "train.save_every",
    "save_total_limit": "train.keep",
    "logging_steps": "train.log_every",
    "eval_steps": "eval.every",
    "report_to": "track",
    "output_dir": "output",
    "batch_size": "batch.pairs_per_step",
    "train_batch_size": "batch.pairs_per_step",
    "per_device_train_batch_size": "batch.pairs_per_step",
    "gradient_accumulation_steps": "batch.pairs_per_step",
    "max_length": "batch.max_tokens",
    "max_seq_length": "batch.max_tokens",
    "model_name_or_path": "model.path",
    "base_model": "model.path",
    "torch_dtype": "model.dtype",
    "bf16": "model.dtype",
    "gradient_checkpointing": "model.checkpointing",
    "attn_implementation": "model.attention",
    "torch_compile": "model.compile",
    "load_in_4bit": "model.quantization",
    "load_in_8bit": "model.quantization",
    "quantization_bit": "model.quantization",
    "lora_r": "model.lora.rank",
    "r": "model.lora.rank",
    "lora_alpha": "model.lora.alpha",
    "lora_dropout": "model.lora.dropout",
    "lora_target_modules": "model.lora.targets",
    "target_modules": "model.lora.targets",
    "ref_model": "reference",
    "dataset": "data",
    "datasets": "data",
    "dataset_name": "data.path",
    "loss_type": "loss.name",
    "beta": "loss.beta",
    "label_smoothing": "loss.label_smoothing",
}
"""What other trainers call a setting: what it is called here."""

_TRUTHS = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}


@dataclass(frozen=True, slots=True)
class Schema:
    """The names of all settings: block -> its keys, and dotted path -> its documentation.

    The entries of a list are written ``*``: ``data.*.path``. The outermost block is "".
    """

    blocks: Mapping[str, tuple[str, ...]]
    notes: Mapping[str, str]

    @classmethod
    def of(cls, model: Any) -> Schema:
        """Read the names from a pydantic model and the models inside it."""
        blocks: dict[str, tuple[str, ...]] = {}
        notes: dict[str, str] = {}

        def walk(block: Any, path: str) -> None:
            # where a setting takes blocks of more than one kind, their keys stand together
            blocks[path] = tuple(dict.fromkeys((*blocks.get(path, ()), *block.model_fields)))
            for name, field in block.model_fields.items():
                here = f"{path}.{name}" if path else name
                notes[here] = field.description or ""
                for child, in_list in _blocks_in(field.annotation):
                    walk(child, f"{here}.*" if in_list else here)

        walk(model, "")
        return cls(blocks, notes)

    def block_of(self, path: KeyPath) -> str | None:
        """Return the block that ``path`` names, or None where the schema has none."""
        name = ".".join("*" if isinstance(part, int) else part for part in path)
        return next((block for block in (name, f"{name}.*") if block in self.blocks), None)

    def homes(self, key: str) -> list[str]:
        """Return every dotted path that ends in ``key``."""
        return [f"{block}.{key}" if block else key for block, keys in self.blocks.items() if key in keys]


def _blocks_in(annotation: Any, in_list: bool = False) -> Iterable[tuple[Any, bool]]:
    if hasattr(annotation, "model_fields"):
        yield annotation, in_list
    is_list = in_list or getattr(annotation, "__origin__", None) is tuple
    for part in get_args(annotation):
        yield from _blocks_in(part, is_list)


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """Return the choice with the fewest edits from ``word``, if they are few for its length."""
    ranked = sorted((edits(word, choice), index, choice) for index, choice in enumerate(choices))
    if not ranked:
        return None
    distance, _, choice = ranked[0]
    allowed = 1 if len(choice) <= 4 else 2 if len(choice) <= 8 else 3
    return choice if distance <= allowed else None


def edits(left: str, right: str) -> int:
    """Count the letters to insert, delete, replace or swap to get from ``left`` to ``right``."""
    before: list[int] = []
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        before, last, row = row, before, [i]
        for j, b in enumerate(right, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == right[j - 2] and b == left[i - 2]:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]


def missing_file(path: Path) -> RecipeError:
    """Say that there is no recipe at ``path``, and which file beside it may be meant."""
    if path.exists():
        return RecipeError(f"{path}: is not a file. Give the path of a recipe.")
    beside = sorted(path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
    close = nearest(path.stem, [found.stem for found in beside])
    hint = next((f"Did you mean '{found}'?" for found in beside if found.stem == close), "Check the path.")
    return RecipeError(f"{path}: there is no such recipe. {hint}")


def apply_overrides(document: Document, overrides: Sequence[str]) -> Document:
    """Return the document with every ``key.path=value`` put in its place.

    Raises:
        RecipeError: an override is not of that form, is given twice, or leads through a plain value.
    """
    value, places = copy.deepcopy(document.value), dict(document.places)
    seen: set[KeyPath] = set()
    for override in overrides:
        key, equals, raw = override.partition("=")
        path: KeyPath = tuple(int(part) if part.isdecimal() else part for part in key.split("."))
        if not equals or not all(part != "" for part in path) or isinstance(path[0], int):
            raise RecipeError(f"{COMMAND_LINE}: '{override}' is not an override. Write key.path=value.")
        if not raw.strip():
            raise RecipeError(
                f"{COMMAND_LINE}: {key}: has no value. Write {key}=null to take a setting away."
            )
        if path in seen:
            raise RecipeError(f"{COMMAND_LINE}: {key}: is given twice. Keep one.")
        seen.add(path)
        _put(value, path, parse_value(raw, f"{COMMAND_LINE}: {key}"), key)
        for known in [known for known in places if known[: len(path)] == path]:
            del places[known]
        # blocks that the override made are its own; those of the file keep their lines
        for end in range(1, len(path) + 1):
            places.setdefault(path[:end], COMMAND_LINE)
    return Document(value=value, places=places, name=document.name)


def _put(value: Any, path: KeyPath, new: Any, key: str) -> None:
    """Set one setting in nested dicts and lists, making missing blocks."""
    for depth, part in enumerate(path):
        is_last = depth == len(path) - 1
        if isinstance(value, dict):
            if is_last:
                value[str(part)] = new
            elif value.get(str(part)) is None:
                value[str(part)] = {}
            elif part == "data" and isinstance(path[depth + 1], int) and isinstance(value[part], dict):
                value[part] = [value[part]]  # a single source may stand without its list
            value = value[str(part)]
            continue
        block = ".".join(map(str, path[:depth]))
        if not isinstance(value, list):
            raise RecipeError(
                f"{COMMAND_LINE}: {key}: {block} is {shown(value)}, which has no settings inside. "
                f"Give {block} as a whole."
            )
        if not isinstance(part, int) or part >= len(value):
            entries = {0: "no entries", 1: "one entry, 0"}.get(len(value), f"entries 0 to {len(value) - 1}")
            raise RecipeError(f"{COMMAND_LINE}: {key}: {block} is a list with {entries}. Name one of them.")
        if is_last:
            value[part] = new
        value = value[part]


def explain(errors: Sequence[Any], document: Document, schema: Schema) -> list[str]:
    """Turn pydantic's error records into one line each, in the order of the file."""
    order = {place: index for index, place in enumerate(document.places.values())}
    found = [(_clean(error, document.value), error) for error in errors]
    # a misspelt setting is one mistake: its right spelling is not reported as missing too
    meant = {_meant(path, schema) for path, error in found if error["type"] == "extra_forbidden"}
    lines: dict[str, int] = {}
    for path, error in found:
        if error["type"] == "missing" and path in meant:
            continue
        place = document.place(path)
        line = f"{place}: {'.'.join(map(str, path))}: {_sentence(error, path, schema)}"
        lines.setdefault(line, order.get(place, -1))
    return sorted(lines, key=lambda line: lines[line])


def _meant(path: KeyPath, schema: Schema) -> KeyPath:
    close = nearest(str(path[-1]), schema.blocks[schema.block_of(path[:-1]) or ""])
    return (*path[:-1], close or "")


def _clean(error: Any, value: Any) -> KeyPath:
    """Keep the part of a pydantic location that a reader of the file can follow."""
    path: list[str | int] = []
    ctx = error.get("ctx", {})
    location = [*error["loc"], *([ctx["key"]] if ctx.get("key") else [])]
    location = [part for part in location if not str(part).startswith("<")]  # which member of a union
    for depth, part in enumerate(location):
        keys: Any = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        if part in keys:
            value = value[part]
        elif isinstance(part, int) or depth < len(location) - 1:
            continue  # the list that we put around a single source
        path.append(part)
    return tuple(path)


def _sentence(error: Any, path: KeyPath, schema: Schema) -> str:
    kind, value, ctx = error["type"], error["input"], error.get("ctx", {})
    match kind:
        case "rule":
            return str(ctx["message"])
        case "extra_forbidden":
            return _unknown(path, schema)
        case "missing" if isinstance(error["loc"][-1], str):
            block = schema.block_of(path[:-1])
            note = schema.notes.get(f"{block}.{path[-1]}" if block else str(path[-1]), "")
            return f"is missing. {note}".rstrip()
        case "literal_error":
            return _no_choice(value, ctx["expected"])
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            sign = {"greater_than": ">", "greater_than_equal": ">=", "less_than": "<"}.get(kind, "<=")
            return f"must be {sign} {next(iter(ctx.values())):g}, got {shown(value)}."
        case "too_long" | "missing":
            return "has the wrong number of entries. Give exactly two, as in [0.9, 0.999]."
        case "string_pattern_mismatch":
            return "is empty text. Give a value or leave the setting out."
        case _:
            return _wrong_type(kind, value, path, schema)


def _unknown(path: KeyPath, schema: Schema) -> str:
    key, block = str(path[-1]), schema.block_of(path[:-1]) or ""
    keys = schema.blocks[block]
    name = block.replace(".*", "")
    accepts = f"{name or 'A recipe'} accepts: {', '.join(keys)}."
    full = f"{name}.{key}" if name else key
    if full in NOT_YET:
        return NOT_YET[full]
    if close := nearest(key, keys):
        return f"no such setting. Did you mean '{close}'? {accepts}"
    if ":" in key:
        return f"no such setting. Put a space after the colon. {accepts}"
    if home := _home(key, schema) or _home(nearest(key, [*_all_keys(schema), *OTHER_NAMES]) or "", schema):
        return f"no such setting here. Did you mean '{home}'? {accepts}"
    return f"no such setting. {accepts}"


def _home(key: str, schema: Schema) -> str | None:
    """Return where in a recipe the setting stands that people call ``key``."""
    homes = [*schema.homes(key), *([OTHER_NAMES[key]] if key in OTHER_NAMES else [])]
    return homes[0].replace(".*", "") if homes else None


def _all_keys(schema: Schema) -> list[str]:
    return [key for keys in schema.blocks.values() for key in keys]


def _no_choice(value: Any, expected: str) -> str:
    choices = re.findall(r"'([^']*)'", expected)
    if value == "float16":
        return "float16 needs loss scaling, which prefopt does not do. Use bfloat16 or float32."
    close = nearest(value, choices) if isinstance(value, str) else None
    hint = f"Did you mean '{close}'? " if close else ""
    return f"{shown(value)} is no choice. {hint}Choose from: {', '.join(choices)}."


def _wrong_type(kind: str, value: Any, path: KeyPath, schema: Schema) -> str:
    if value is None:
        return "is empty. Give it a value or leave it out."
    if kind.startswith("bool"):
        meant = _TRUTHS.get(value.lower()) if isinstance(value, str) else None
        return f"must be true or false, got {shown(value)}." + (f" Write {meant}." if meant else "")
    if kind.startswith(("int", "float")):
        what = "a whole number" if kind.startswith("int") else "a number"
        return f"must be {what}, got {shown(value)}.{_as_number(value)}"
    if kind.startswith("string"):
        is_plain = isinstance(value, (int, float))
        return f"must be text, got {shown(value)}." + (" Put it in quotes if it is text." if is_plain else "")
    return _wrong_block(kind, value, path, schema)


def _wrong_block(kind: str, value: Any, path: KeyPath, schema: Schema) -> str:
    """Say how a single value is written where a block or a list belongs."""
    first = "name" if path == ("loss",) else schema.blocks.get(schema.block_of(path) or "", ("",))[0]
    is_plain = isinstance(value, (str, int, float))
    if first in {"name", "path"}:
        return f"must be a block of settings, got {shown(value)}." + (
            f" Write {{{first}: {value}}}." if is_plain else ""
        )
    if kind.startswith(("tuple", "list")):
        return f"must be a list, got {shown(value)}." + (f" Write [{value}]." if is_plain else "")
    return f"must be a block of settings, got {shown(value)}."


def _as_number(value: Any) -> str:
    """Say how the number that is meant is written."""
    if isinstance(value, float) and value == int(value):
        return f" Write {int(value)}."
    if isinstance(value, str):
        try:
            is_number = isinstance(resolve(value), (int, float)) and not isinstance(resolve(value), bool)
        except ValueError:
            is_number = False
        return " Remove the quotes." if is_number else ""
    return ""


def shown(value: Any) -> str:
    """Show a value as the recipe spells it, in a few words."""
    if isinstance(value, dict):
        return "a block"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "nothing"
    text = str(value)
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return f"the text '{text}'" if isinstance(value, str) else text
