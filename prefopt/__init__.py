"""prefopt: preference optimization for language models, exact and prefix-shared.

Names are loaded when they are first used, so ``import prefopt`` needs nothing but Python.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefopt import data, kernels, losses
    from prefopt.data.packs.plan import Plan
    from prefopt.data.packs.steps import PlannedSteps, Reader, Steps, build_step
    from prefopt.policy import Policy
    from prefopt.reference import (
        AdapterOffReference,
        CachedReference,
        FrozenAdapterReference,
        FrozenReference,
        Reference,
    )
    from prefopt.run import checkpoint
    from prefopt.trainer import StepResult, Trainer, metrics
    from prefopt.types import (
        Comparison,
        LabelledLogps,
        ListLogps,
        LossOutput,
        PackedBatch,
        PairLogps,
        Preference,
        Segments,
        SeqLogps,
        Step,
        TokenizedGroup,
        Totals,
    )

try:
    __version__: str = _version("prefopt")
except PackageNotFoundError:  # a checkout on the path, not installed
    __version__ = "0+checkout"

_HOME = {
    "AdapterOffReference": "reference",
    "CachedReference": "reference",
    "Comparison": "types",
    "FrozenAdapterReference": "reference",
    "FrozenReference": "reference",
    "ListLogps": "types",
    "LossOutput": "types",
    "PackedBatch": "types",
    "PairLogps": "types",
    "Plan": "data.packs.plan",
    "PlannedSteps": "data.packs.steps",
    "Policy": "policy",
    "Preference": "types",
    "Reader": "data.packs.steps",
    "Reference": "reference",
    "Segments": "types",
    "SeqLogps": "types",
    "LabelledLogps": "types",
    "Step": "types",
    "StepResult": "trainer",
    "Steps": "data.packs.steps",
    "TokenizedGroup": "types",
    "Totals": "types",
    "Trainer": "trainer",
    "build_step": "data.packs.steps",
}
_MODULES = {
    "checkpoint": "run.checkpoint",
    "data": "data",
    "kernels": "kernels",
    "losses": "losses",
    "metrics": "trainer.metrics",
}

__all__ = [
    "AdapterOffReference",
    "CachedReference",
    "Comparison",
    "FrozenAdapterReference",
    "FrozenReference",
    "LabelledLogps",
    "ListLogps",
    "LossOutput",
    "PackedBatch",
    "PairLogps",
    "Plan",
    "PlannedSteps",
    "Policy",
    "Preference",
    "Reader",
    "Reference",
    "Segments",
    "SeqLogps",
    "Step",
    "StepResult",
    "Steps",
    "TokenizedGroup",
    "Totals",
    "Trainer",
    "__version__",
    "build_step",
    "checkpoint",
    "data",
    "kernels",
    "losses",
    "metrics",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f"prefopt.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"prefopt.{_MODULES[name]}")
    else:
        raise AttributeError(f"module 'prefopt' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
