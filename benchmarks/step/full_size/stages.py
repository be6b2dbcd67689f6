"""What the full-size step benchmark measures: models and workloads in order, and the changes tried on each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from benchmarks.shared.environment import is_installed
from benchmarks.step.flops import Sizes
from benchmarks.step.models import MODELS, Model
from benchmarks.step.prefopt_contender import Way
from benchmarks.step.trl_contender import FLASH, TrlWay
from benchmarks.step.workloads import WORKLOADS, Workload, like, uniform

Change = tuple[str, dict[str, Any]]
"""A name, and the fields of ``Way`` or ``TrlWay`` that become other ones."""

LADDER: tuple[Change, ...] = (
    ("padded", {"layout": "padded", "head": "logits"}),
    ("padding-free", {"layout": "padding-free"}),
    ("+ prefix sharing", {"layout": "shared"}),
    ("+ fused head", {"head": "fused"}),
    ("+ cached reference", {"is_cached": True}),
    ("+ compile", {"compiles": True}),
)
"""Each on top of those before it, but for those that are not available."""

SIDES: tuple[Change, ...] = (
    ("attention varlen", {"attention": "varlen"}),
    ("attention flex", {"attention": "flex"}),
    ("chunked head", {"head": "chunked"}),
    ("layers recomputed", {"recomputes": True}),
    ("attention segments", {"attention": "segments"}),
    ("attention dense", {"attention": "dense"}),
)
"""Each alone, on top of sharing, the fused head and the cached reference."""
SIDES_ON = Way(is_cached=True)

SHORT: tuple[Change, ...] = (
    ("padding-free, fused, cached", {"layout": "padding-free", "is_cached": True}),
    ("shared, fused, cached", {"layout": "shared"}),
)
"""What sharing is worth with all else at its best."""


def trl_changes(is_uniform: bool) -> tuple[Change, ...]:
    """Return what is tried on TRL with a live reference, one after the other; what makes it faster stays."""
    flash = next((name for name, package in FLASH.items() if is_installed(package)), min(FLASH))
    grouped: Change = ("grouped by length", {"sorts": True})
    return (
        *(() if is_uniform else (grouped,)),
        ("liger", {"liger": True}),
        ("flash attention", {"attention": flash}),
        ("checkpointing", {"recomputes": True}),
    )


def trl_name(way: TrlWay) -> str:
    """Return TRL's name with all that is switched on."""
    parts = ["TRL", way.attention]
    names = {
        "liger": way.liger,
        "grouped by length": way.sorts,
        "checkpointing": way.recomputes,
        "precomputed reference": way.is_cached,
    }
    return ", ".join([*parts, *(name for name, is_on in names.items() if is_on)])


PARTS = ("ladder", "sides", "short", "trl", "trl best")
"""``trl`` looks for TRL's best settings, ``trl best`` takes those found last."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One model on one workload.

    Args:
        model: which.
        workload: which.
        parts: out of ``PARTS``.
    """

    model: Model
    workload: Workload
    parts: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.model.name}, {self.workload.name}"


def _stage(model: str, workload: str, *parts: str) -> Stage:
    return Stage(MODELS[model], WORKLOADS[workload], parts)


STAGES = (
    _stage("Qwen3-1.7B", "512 + 256 / 256", "ladder", "trl"),
    _stage("Qwen3-1.7B", "like UltraFeedback", "ladder", "trl"),
    _stage("Qwen3-1.7B", "8 answers on 2048", "short"),
    _stage("Llama-3.1-8B", "2048 + 512 / 512", "short", "trl best"),
    _stage("Qwen3-0.6B", "512 + 256 / 256", "short", "trl best"),
    _stage("Qwen3-1.7B", "2048 + 512 / 512", "short", "sides"),
    _stage("Qwen3-1.7B", "like Tulu-HelpSteer", "short", "trl best"),
    _stage("Qwen3-1.7B", "like MetaMath", "short", "trl best"),
    _stage("Qwen3-1.7B", "like HH", "short", "trl best"),
    _stage("Qwen3-1.7B", "8192 + 512 / 512", "short"),
    _stage("Qwen3-1.7B", "128 + 256 / 256", "short"),
    _stage("Qwen3-0.6B", "8192 + 512 / 512", "short"),
    _stage("Llama-3.1-8B", "512 + 256 / 256", "short"),
)
"""The most telling first: what is left when the time is up is named as left out."""

_TINY = replace(
    MODELS["Qwen3-0.6B"], name="tiny Qwen3", sizes=Sizes(2, 64, 96, 4, 2, 16, 300), dtype="float32"
)
QUICK_STAGES = (
    Stage(_TINY, uniform(32, 16, 16, 4), ("ladder", "sides", "trl")),
    Stage(_TINY, like("UltraFeedback", 60, 0.42, 0.9, 0.6, 4), ("short", "trl best")),
    Stage(
        replace(_TINY, name="tiny Qwen3, LoRA", rank=4),
        Workload("4 answers on 48", 48, (12,) * 4, pairs_per_step=4),
        ("short",),
    ),
)
"""The same on a model and rows small enough for any machine, to see that everything runs."""

SMALL_FLOAT32 = replace(
    MODELS["Qwen3-0.6B"], name="4-layer Qwen3", sizes=Sizes(4, 256, 768, 8, 4, 32, 8192), dtype="float32"
)
"""On which contenders are compared in float32, where rounding hides nothing."""
