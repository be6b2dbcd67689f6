"""The values that flow from a data row to a loss, by what they carry.

``rows``: one row, as text and as tokens. ``packs``: what meets the model. ``sequences``: per-token log-probs and their
sums. ``logps``: what meets a loss. ``marks``: what a loss writes into its signature. ``checks``: what log-probs may be.

Letters, once: **T** packed tokens, **M** scored tokens, **S** responses (sequences), **P** pairs,
**G** groups, **U** units of a loss (pairs, responses or groups). Log-probs are nats: float32 from
the kernels, float64 in tests, and 16 bits of another trainer's are widened to float32 when they come in.
Sums are float64, and a loss is rounded back when it is returned. Lengths are tokens.

Values are frozen; ``__post_init__`` compares what lies on the host: shapes, dtypes, devices, lengths. What belongs
together in a call is compared by the door of the loss (``losses._door``); past it, losses and kernels check nothing.
"""

from __future__ import annotations

from prefopt.types.logps import (
    LabelledLogps,
    ListLogps,
    LossOutput,
    PairLogps,
)
from prefopt.types.marks import (
    BATCH_STATS,
    INPUTS,
    LEARNED_MASKS,
    MASK_STATS,
    OTHER_REFERENCES,
    OTHER_RESPONSES,
    PAIRED_STATS,
    PROMPTS,
    READS,
    ROLES,
    SCALES,
    STATS,
    TOKEN_STATS,
    Applies,
    Carried,
    InputSpec,
    OnlyWith,
    Prompts,
    Range,
    Reads,
    Refuses,
    Roles,
    Scale,
    Stats,
    WholeStep,
)
from prefopt.types.packs import (
    PackedBatch,
    Segments,
    Step,
    StepLayout,
    Totals,
)
from prefopt.types.rows import (
    Comparison,
    Extra,
    IntArray,
    Message,
    Preference,
    Text,
    TokenizedGroup,
)
from prefopt.types.sequences import SeqLogps

__all__ = [
    "BATCH_STATS",
    "INPUTS",
    "LEARNED_MASKS",
    "MASK_STATS",
    "OTHER_REFERENCES",
    "OTHER_RESPONSES",
    "PAIRED_STATS",
    "PROMPTS",
    "READS",
    "ROLES",
    "SCALES",
    "STATS",
    "TOKEN_STATS",
    "Applies",
    "Carried",
    "Comparison",
    "Extra",
    "InputSpec",
    "IntArray",
    "LabelledLogps",
    "ListLogps",
    "LossOutput",
    "Message",
    "OnlyWith",
    "PackedBatch",
    "PairLogps",
    "Preference",
    "Prompts",
    "Range",
    "Reads",
    "Refuses",
    "Roles",
    "Scale",
    "Segments",
    "SeqLogps",
    "Stats",
    "Step",
    "StepLayout",
    "Text",
    "TokenizedGroup",
    "Totals",
    "WholeStep",
]
