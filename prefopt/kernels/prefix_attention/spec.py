"""What one attention layer asks for, handed to every back-end as one value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from prefopt.types import Segments


@dataclass(frozen=True, slots=True)
class Rule:
    """Describe one attention layer: how scores are scaled, cut off and bounded.

    Args:
        scaling: multiplies the scores.
        window: a token sees at most this many tokens of its path, itself included; None: all.
        softcap: bounds the scaled scores by ``softcap * tanh(score / softcap)``; None: not at all.
    """

    scaling: float
    window: int | None = None
    softcap: float | None = None


Backend = Callable[[Tensor, Tensor, Tensor, Tensor | None, Segments, Rule], Tensor]
"""query [1, Hq, T, d], key, value [1, Hkv, T, dv], sinks [Hq] or None, forest, rule -> [1, T, Hq, dv]."""
