"""The prompts' embeddings of many groups as one array."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prefopt.data.tokens.arrays import Float32
from prefopt.errors import DataError
from prefopt.types import TokenizedGroup


def stack_embeddings(groups: Sequence[TokenizedGroup]) -> Float32 | None:
    """Lay the embeddings out as [G, E], NaN for a group without one; None where no group has one."""
    sizes = {len(group.prompt_embedding): group for group in groups if group.prompt_embedding is not None}
    if len(sizes) > 1:
        (size, first), (other, second) = list(sizes.items())[:2]
        raise DataError(
            f"{second.origin}: the prompt embedding has {other} numbers, that of {first.origin} {size}. Embed all "
            f"prompts with one encoder."
        )
    if not sizes:
        return None
    absent = np.full(next(iter(sizes)), np.nan, dtype=np.float32)
    return np.stack([absent if g.prompt_embedding is None else g.prompt_embedding for g in groups])


def join_embeddings(parts: Sequence[Float32 | None], counts: Sequence[int]) -> Float32 | None:
    """Join what several tables hold, NaN for the groups of one that holds none."""
    sizes = {part.shape[1] for part in parts if part is not None}
    if not sizes:
        return None
    assert len(sizes) == 1, f"tables with prompt embeddings of {sizes} numbers"
    width = sizes.pop()
    absent = [np.full((count, width), np.nan, dtype=np.float32) for count in counts]
    return np.concatenate([a if part is None else part for a, part in zip(absent, parts, strict=True)])
