"""Losses on plain tensors, for trainers that hold one summed log-prob per answer: ``dpo_loss``, ``kto_loss``, ...

Sums of log-probs are in nats, lengths in tokens. What comes back is unreduced and unpacks as in HALOs, SimPO,
torchtune and TRL before 1.0, ``losses, chosen_rewards, rejected_rewards = dpo_loss(...)``, or is read by name:
``dpo_loss(...).loss`` is the tensor to train on. Rewards are detached. Losses over single answers return ``loss,
reward``, both in the order of the answers, and a loss that carries averages over steps also returns ``carried``, to be
handed back in the next one: ``bco_loss(..., **carried)``. Settings and defaults are those of the loss of the same name,
and so are their ranges; ``help(dpo_loss)`` lists what a function takes.

There is one for every loss that reads nothing of an answer but its sum, or its sum and length, made from the loss's
signature when it is first asked for; ``on_sums(loss)`` makes one of a loss of your own. For any other loss the error
says what to build instead: values of ``PairLogps.from_concatenated(logps, mask)`` and its like from your per-token
log-probs, which also take transforms: ``f_div(dpo, divergence="js")(policy, reference).loss``.

Losses over the whole optimizer step (``help`` says which) compare all units that they are given, so give them all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from prefopt.losses import LOSSES, Loss, contract_of
from prefopt.losses._on_sums import (
    AnswerLoss,
    CarriedAnswerLoss,
    CarriedPairLoss,
    PairLoss,
    instead,
    obstacle,
    on_sums,
)
from prefopt.words import did_you_mean

# Type checkers read functional.pyi, which docs/make_functional_stub.py writes from the same signatures.

_ELSEWHERE = {"cdpo_loss": "Call dpo_loss with label_smoothing above 0."}
_RETURNED = (PairLoss, AnswerLoss, CarriedPairLoss, CarriedAnswerLoss)
_on_sums = lru_cache(maxsize=256)(on_sums)


def __getattr__(name: str) -> Callable[..., Any]:
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
    made = (f"{name}_loss" for name, loss in LOSSES.items() if _is_here(loss))
    return sorted(["on_sums", *(kind.__name__ for kind in _RETURNED), *made])


def _is_here(loss: Loss) -> bool:
    return obstacle(contract_of(loss)) is None
