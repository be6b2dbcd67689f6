"""The block of a recipe that names the optimizer and the schedule, with what each of them reads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from prefopt.optim import DECAY_SHAPES, OPTIMIZERS, SCHEDULES, own_settings, unread
from prefopt.recipe.blocks import Block, Decay, ShareOrCount, share_or_count, wrong
from prefopt.recipe.explain import no_choice


def _among(names: Iterable[str]) -> Any:
    """Return a type of setting: one of ``names``."""
    choices: list[Any] = list(names)

    def check(value: str) -> str:
        if value not in choices:
            raise wrong(no_choice(value, choices))
        return value

    return Annotated[str, Field(json_schema_extra={"enum": [*choices]}), AfterValidator(check)]


class Optim(Block):
    """The optimizer and its learning rate. A setting that the two chosen ones do not read is refused."""

    lr: Annotated[float, Field(gt=0)]
    """Peak learning rate. Usual: 5e-7 to 1e-6 for all weights, 5e-6 to 2e-5 for an adapter; adafactor's is relative."""
    name: _among(OPTIMIZERS) = "adamw"  # type: ignore[valid-type]
    """Rule by which weights move. adamw_8bit needs bitsandbytes and an NVIDIA GPU, and adafactor whole weights."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled; on matrices, not on norms and biases."""
    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] | None = None
    """Decay rates of AdamW's first and second moment; all but adafactor. Left out: [0.9, 0.999]."""
    eps: Annotated[float, Field(gt=0)] | None = None
    """Added to the root of AdamW's second moment; all but adafactor. Left out: 1e-8."""
    momentum: Decay | None = None
    """Decay rate of muon's averaged gradients. Left out: 0.95."""
    beta2_decay: Annotated[float, Field(le=0)] | None = None
    """Exponent of adafactor's averages: step t counts t ** beta2_decay in them. Left out: -0.8."""
    clip_threshold: Annotated[float, Field(ge=1)] | None = None
    """Largest root mean square of adafactor's update of a tensor. Left out: 1."""
    schedule: _among(SCHEDULES) = "cosine"  # type: ignore[valid-type]
    """cosine and linear fall until the last step, wsd only in the last ones."""
    warmup: ShareOrCount = 0.1
    """Linear rise from zero: a share of all steps below 1, else a number of steps, fewer than the run has."""
    floor: Annotated[float, Field(ge=0, lt=1)] | None = None
    """What is left after the last step, as a share of the peak; all but constant. Left out: 0."""
    decay: Annotated[float, Field(gt=0), AfterValidator(share_or_count)] | None = None
    """Length of the fall of wsd: a share of what follows the warm-up below 1, else steps. Left out: 0.1."""
    decay_shape: _among(DECAY_SHAPES) | None = None  # type: ignore[valid-type]
    """Form of the fall of wsd. Left out: linear."""
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest total gradient norm. null: no clipping."""
    mask_lr: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate of learned token weights, as in sparse_mask. null: lr."""
    mask_weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled; on the matrices that make learned token weights."""

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, block: Any) -> Any:
        """Write down what the optimizer and the schedule take where the recipe leaves their settings out."""
        if not isinstance(block, dict):
            return block
        name, schedule = block.get("name", "adamw"), block.get("schedule", "cosine")
        if not (isinstance(name, str) and isinstance(schedule, str)):
            return block
        kind, falls = OPTIMIZERS.get(name), SCHEDULES.get(schedule)
        found = (own_settings(kind.build) if kind else {}) | (own_settings(falls) if falls else {})
        return block | {key: value for key, value in found.items() if block.get(key) is None}

    @model_validator(mode="after")
    def _is_read(self) -> Optim:
        given = [key for key in type(self).model_fields if getattr(self, key) is not None]
        if found := unread(self.name, self.schedule, given):
            raise wrong(found[1], found[0])
        return self
