"""The plain-tensor door: losses for trainers that hold one summed log-prob per answer.

Everything is [P]: sums of log-probs in nats, lengths in tokens; the result is the loss of each pair,
unreduced. Settings and defaults are those of the loss of the same name, and so are their ranges.

``wpo`` and ``ld_dpo`` weigh single tokens, and ``sft`` and ``with_nll`` average over them, so sums are
not enough. Build ``PairLogps.from_concatenated(logps, mask)`` (or ``SeqLogps.from_padded`` for ``sft``)
from your per-token log-probs and call ``prefopt.losses.ld_dpo(policy, reference).loss`` instead; ``wpo``
also needs ``log_sum_p2=`` beside the log-probs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from prefopt.losses._contract import Loss, check_settings, contract_of
from prefopt.losses._terms import Norm
from prefopt.losses.dpo import dpo
from prefopt.losses.focal import focal
from prefopt.losses.ipo import ipo
from prefopt.losses.simpo import simpo
from prefopt.types import PairLogps, SeqLogps

_INSTEAD = {
    "wpo_loss": "It averages per-token values. Build PairLogps.from_concatenated(logps, mask, log_sum_p2=...) "
    "from [2 P, T] tensors and call prefopt.losses.wpo(policy, reference).",
    "ld_dpo_loss": "It weighs tokens by place. Build PairLogps.from_concatenated(logps, mask) from [2 P, T] "
    "per-token log-probs and call prefopt.losses.ld_dpo(policy, reference).",
    "sft_loss": "Build SeqLogps.from_padded(logps, mask) from [S, T] per-token log-probs and call "
    "prefopt.losses.sft(policy).",
    "cdpo_loss": "Call dpo_loss with label_smoothing above 0.",
}


def dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the loss of ``prefopt.losses.dpo`` for each pair.

    Args:
        policy_chosen_logps: [P] summed log-prob of each chosen answer under the policy, nats.
        policy_rejected_logps: [P], of each rejected answer.
        ref_chosen_logps: [P], of each chosen answer under the reference.
        ref_rejected_logps: [P], of each rejected answer under the reference.
        beta: reward per nat of log-ratio.
        label_smoothing: probability that a label is flipped (cDPO).

    Returns:
        [P], differentiable.

    Raises:
        RecipeError: a setting is out of range.
        ValueError: the tensors are not all [P].
    """
    policy = _pairs("dpo_loss", policy_chosen_logps, policy_rejected_logps)
    reference = _pairs("dpo_loss", ref_chosen_logps, ref_rejected_logps, like=policy_chosen_logps)
    return _pay(dpo, "dpo_loss", policy, reference, beta=beta, label_smoothing=label_smoothing)


def ipo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    beta: float = 0.1,
    norm: Norm = "mean",
) -> Tensor:
    """Return the loss of ``prefopt.losses.ipo`` for each pair.

    Args:
        policy_chosen_logps: [P] summed log-prob of each chosen answer under the policy, nats.
        policy_rejected_logps: [P], of each rejected answer.
        ref_chosen_logps: [P], of each chosen answer under the reference.
        ref_rejected_logps: [P], of each rejected answer under the reference.
        chosen_lengths: [P] scored tokens of each chosen answer; needed for ``norm="mean"`` only.
        rejected_lengths: [P], of each rejected answer.
        beta: the target margin is 1 / (2 beta).
        norm: "mean" divides each log-ratio by its answer's length; "sum" does not.

    Returns:
        [P], differentiable.

    Raises:
        RecipeError: a setting is out of range.
        ValueError: the tensors are not all [P], or lengths are missing or unused.
    """
    lengths = (chosen_lengths, rejected_lengths)
    if norm == "mean" and (chosen_lengths is None or rejected_lengths is None):
        raise ValueError(
            "ipo_loss: norm='mean' needs chosen_lengths and rejected_lengths. Give both, or norm='sum'."
        )
    if norm != "mean" and lengths != (None, None):
        raise ValueError(
            f"ipo_loss: norm={norm!r} does not use lengths. Leave them out, or give norm='mean'."
        )
    policy = _pairs("ipo_loss", policy_chosen_logps, policy_rejected_logps, *lengths)
    reference = _pairs("ipo_loss", ref_chosen_logps, ref_rejected_logps, *lengths, like=policy_chosen_logps)
    return _pay(ipo, "ipo_loss", policy, reference, beta=beta, norm=norm)


def simpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float = 2.0,
    gamma: float = 1.0,
) -> Tensor:
    """Return the loss of ``prefopt.losses.simpo`` for each pair.

    Args:
        policy_chosen_logps: [P] summed log-prob of each chosen answer under the policy, nats.
        policy_rejected_logps: [P], of each rejected answer.
        chosen_lengths: [P] scored tokens of each chosen answer.
        rejected_lengths: [P], of each rejected answer.
        beta: reward per nat per token.
        gamma: target margin of rewards; gamma_beta_ratio * beta in the authors' terms.

    Returns:
        [P], differentiable.

    Raises:
        RecipeError: a setting is out of range.
        ValueError: the tensors are not all [P].
    """
    policy = _pairs(
        "simpo_loss", policy_chosen_logps, policy_rejected_logps, chosen_lengths, rejected_lengths
    )
    return _pay(simpo, "simpo_loss", policy, beta=beta, gamma=gamma)


def focal_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    gamma: float = 0.05,
    detach_weight: bool = False,
) -> Tensor:
    """Return the loss of ``prefopt.losses.focal`` for each pair.

    Args:
        policy_chosen_logps: [P] summed log-prob of each chosen answer under the policy, nats.
        policy_rejected_logps: [P], of each rejected answer.
        ref_chosen_logps: [P], of each chosen answer under the reference.
        ref_rejected_logps: [P], of each rejected answer under the reference.
        beta: reward per nat of log-ratio.
        gamma: exponent of the weight; 0 is DPO.
        detach_weight: hold the weight constant in the gradient.

    Returns:
        [P], differentiable.

    Raises:
        RecipeError: a setting is out of range.
        ValueError: the tensors are not all [P].
    """
    policy = _pairs("focal_loss", policy_chosen_logps, policy_rejected_logps)
    reference = _pairs("focal_loss", ref_chosen_logps, ref_rejected_logps, like=policy_chosen_logps)
    return _pay(focal, "focal_loss", policy, reference, beta=beta, gamma=gamma, detach_weight=detach_weight)


def _pairs(
    place: str,
    chosen: Tensor,
    rejected: Tensor,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    like: Tensor | None = None,
) -> PairLogps:
    """Stand each answer in by one token worth its sum, or its mean where lengths are given.

    The losses behind this door read an answer's total or its mean and nothing else, and both are that
    token's value.
    """
    tensors = [chosen, rejected, chosen_lengths, rejected_lengths, like]
    shapes = [list(tensor.shape) for tensor in tensors if tensor is not None]
    if chosen.dim() != 1 or any(shape != shapes[0] for shape in shapes):
        raise ValueError(
            f"{place}: the tensors have shapes {shapes}. Give one value per pair, [P], everywhere."
        )
    sides = []
    for sums, lengths in ((chosen, chosen_lengths), (rejected, rejected_lengths)):
        value = sums if lengths is None else sums / lengths
        sides.append(SeqLogps(tokens=value, lengths=(1,) * len(value)))
    return PairLogps(chosen=sides[0], rejected=sides[1])


def _pay(loss: Loss, place: str, *logps: PairLogps, **settings: Any) -> Tensor:
    return loss(*logps, **check_settings(place, contract_of(loss).settings, settings, place)).loss


if not TYPE_CHECKING:  # hidden from type checkers, who would otherwise accept any name

    def __getattr__(name: str) -> Any:
        if name in _INSTEAD:
            raise AttributeError(f"prefopt.losses.functional has no {name}. {_INSTEAD[name]}")
        raise AttributeError(f"module 'prefopt.losses.functional' has no attribute '{name}'")
