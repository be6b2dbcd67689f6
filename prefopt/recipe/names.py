"""The names of a recipe's settings: the schema as a table of names, and what other trainers call them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from prefopt.recipe.strict_yaml import KeyPath

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
    "min_lr_ratio": "optim.floor",
    "min_lr_rate": "optim.floor",
    "max_grad_norm": "optim.clip",
    "optimizer": "optim.name",
    "adam_beta1": "optim.betas",
    "adam_beta2": "optim.betas",
    "adam_epsilon": "optim.eps",
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
