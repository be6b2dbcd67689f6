"""Which cases of a law run in the default lane, and which wait for the slow one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import pytest


def slow_but(
    by_default: Collection[Any] | Callable[[Any], bool], cases: Mapping[str, Any] | Iterable[Any]
) -> list[Any]:
    """Mark all cases slow but those that are in, or accepted by, ``by_default``; there must be one.

    Args:
        by_default: keys of a mapping, or else cases.
        cases: by the name that each gets in reports, or without names; a tuple stands for several parameters.
    """
    keeps = by_default if callable(by_default) else by_default.__contains__
    keys = list(cases)
    values = [cases[key] for key in keys] if isinstance(cases, Mapping) else keys
    if not callable(by_default):
        assert all(key in keys for key in by_default), (
            f"no such case: {[k for k in by_default if k not in keys]}"
        )
    assert any(map(keeps, keys)), "the law would have no case in the default lane"
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)),
            marks=() if keeps(key) else pytest.mark.slow,
            id=key if isinstance(cases, Mapping) else None,
        )
        for key, value in zip(keys, values, strict=True)
    ]
