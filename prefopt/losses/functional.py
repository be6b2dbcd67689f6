"""Losses on plain tensors, for trainers that hold one summed log-prob per answer: ``dpo_loss``, ``simpo_loss``, ...

Everything is [P]: sums of log-probs in nats, lengths in tokens; the result is the loss of each pair,
unreduced. Settings and defaults are those of the loss of the same name, and so are their ranges;
``help(dpo_loss)`` lists what a function takes.

There is one for every loss over pairs that reads nothing of an answer but its sum, or its sum and length,
made from the loss's signature when it is first asked for; ``on_sums(loss)`` makes one of a loss of your own.
For any other loss the error says what to build instead: values of ``PairLogps.from_concatenated(logps, mask)``
and its like from your per-token log-probs, which also take transforms:
``f_div(dpo, divergence="js")(policy, reference).loss``.

``aot_loss`` matches quantiles over all pairs it is given, so give it all of the optimizer step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from torch import Tensor

from prefopt.losses import LOSSES, Loss, contract_of
from prefopt.losses._on_sums import instead, obstacle, on_sums
from prefopt.words import did_you_mean

# Type checkers read functional.pyi, which docs/make_functional_stub.py writes from the same signatures.

_ELSEWHERE = {"cdpo_loss": "Call dpo_loss with label_smoothing above 0."}
_on_sums = lru_cache(maxsize=256)(on_sums)


def __getattr__(name: str) -> Callable[..., Tensor]:
    if name in _ELSEWHERE:
        raise AttributeError(f"{__name__} has no {name}. {_ELSEWHERE[name]}")
    loss = LOSSES.get(name.removesuffix("_loss")) if name.endswith("_loss") else None
    if loss is None:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'.{did_you_mean(name, __dir__())}")
    contract = contract_of(loss)
    if (why := obstacle(contract)) is not None:
        raise AttributeError(f"{__name__} has no {name}. {why} {instead(contract)}")
    return _on_sums(loss)


def __dir__() -> list[str]:
    return sorted(["on_sums", *(f"{name}_loss" for name, loss in LOSSES.items() if _is_here(loss))])


def _is_here(loss: Loss) -> bool:
    return obstacle(contract_of(loss)) is None
