"""The plain-tensor door: losses for trainers that hold one summed log-prob per answer.

Everything is [P]: sums of log-probs in nats, lengths in tokens; the result is the loss of each pair,
unreduced. Settings and defaults are those of the loss of the same name, and so are their ranges.

``wpo`` and ``ld_dpo`` weigh single tokens, and ``sft``, ``slic`` and ``with_nll`` average over them, so
sums are not enough. Build ``PairLogps.from_concatenated(logps, mask)`` (or ``SeqLogps.from_padded`` for
``sft``) from your per-token log-probs and call ``prefopt.losses.ld_dpo(policy, reference).loss``
instead; ``wpo`` also needs ``log_sum_p2=`` beside the log-probs. The same values take transforms:
``f_div(dpo, divergence="js")(policy, reference).loss``.

Losses over a whole optimizer step read all pairs at once: hand ``aot_loss`` all of the step's, or it
matches the quantiles of a part. Those that carry averages from step to step return them from
``prefopt.losses``, and those over single answers take ``SideLogps`` there.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol

from torch import Tensor

from prefopt.losses._contract import Loss, check_settings, contract_of, signature_of
from prefopt.losses._terms import Norm
from prefopt.losses.aot import aot
from prefopt.losses.apo import apo_down, apo_zero
from prefopt.losses.bco_pair import bco_pair
from prefopt.losses.cal_dpo import cal_dpo
from prefopt.losses.convex import convex
from prefopt.losses.discopop import discopop
from prefopt.losses.dpo import dpo
from prefopt.losses.exo_pair import exo_pref, exo_rw
from prefopt.losses.focal import focal
from prefopt.losses.hinge import hinge
from prefopt.losses.ipo import ipo
from prefopt.losses.nca_pair import nca_pair
from prefopt.losses.robust import robust
from prefopt.losses.simpo import simpo
from prefopt.losses.sppo import sppo, sppo_hard
from prefopt.types import LossOutput, PairLogps, SeqLogps

P = ParamSpec("P")

SUMS = ("policy_chosen_logps", "policy_rejected_logps", "ref_chosen_logps", "ref_rejected_logps")

_INSTEAD = {
    "wpo_loss": "It averages per-token values. Build PairLogps.from_concatenated(logps, mask, log_sum_p2=...) "
    "from [2 P, T] tensors and call prefopt.losses.wpo(policy, reference).",
    "ld_dpo_loss": "It weighs tokens by place. Build PairLogps.from_concatenated(logps, mask) from [2 P, T] "
    "per-token log-probs and call prefopt.losses.ld_dpo(policy, reference).",
    "slic_loss": "It averages over tokens. Build PairLogps.from_concatenated(logps, mask) from [2 P, T] "
    "per-token log-probs and call prefopt.losses.slic(policy).",
    "sft_loss": "Build SeqLogps.from_padded(logps, mask) from [S, T] per-token log-probs and call "
    "prefopt.losses.sft(policy).",
    **{
        f"{name}_loss": "It carries averages from step to step. Build PairLogps.from_concatenated(logps, mask) "
        f"from all 2 P rows of the step and call prefopt.losses.{name}(policy, reference, **carried) with what "
        f"the last call returned as carried."
        for name in ("bco", "beta_dynamic", "alpha_margin")
    },
    **{
        f"{name}_loss": "It learns from single answers. Build SideLogps(SeqLogps.from_padded(logps, mask), "
        f"is_desirable) from [S, T] per-token log-probs and call prefopt.losses.{name}(policy, reference)."
        for name in ("aot_unpaired", "bco_unpaired", "kto", "apo_zero_unpaired")
    },
    "relative_loss": "It compares prompts. Build PairLogps.from_concatenated(logps, mask) from all 2 P rows of the "
    "step and call prefopt.losses.relative(policy, reference, prompt_embedding=...).",
    "cdpo_loss": "Call dpo_loss with label_smoothing above 0.",
}

_DOC = """Return the loss of ``prefopt.losses.{name}`` for each pair.

{summary}

Args:
    policy_chosen_logps: [P] summed log-prob of each chosen answer under the policy, nats.
    policy_rejected_logps: [P], of each rejected answer.
    ref_chosen_logps: [P], of each chosen answer under the reference.
    ref_rejected_logps: [P], of each rejected answer under the reference.
    {keywords}: as in ``prefopt.losses.{name}``.

Returns:
    [P], differentiable.

Raises:
    RecipeError: a setting is out of range.
    ValueError: the tensors are not all [P].
"""


class SumsLoss(Protocol[P]):
    """A loss on sums of log-probs; its keywords are those of the loss of the same name."""

    def __call__(
        self,
        policy_chosen_logps: Tensor,
        policy_rejected_logps: Tensor,
        ref_chosen_logps: Tensor,
        ref_rejected_logps: Tensor,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Tensor: ...


def _on_sums(loss: Callable[Concatenate[PairLogps, PairLogps, P], LossOutput]) -> SumsLoss[P]:
    """Open the door to a loss that reads nothing of an answer but its total, under both models.

    The door carries the signature of the loss, so no setting, default or range is written twice.
    """
    contract = contract_of(loss)
    place = f"{contract.name}_loss"
    keywords = [p for p in signature_of(loss).parameters.values() if p.kind is Parameter.KEYWORD_ONLY]
    sums = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, annotation=Tensor) for name in SUMS]
    signature = Signature([*sums, *keywords], return_annotation=Tensor)

    def door(*args: Any, **kwargs: Any) -> Tensor:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{place}: {error}. It takes {', '.join(signature.parameters)}.") from None
        chosen, rejected, ref_chosen, ref_rejected = (given.pop(name) for name in SUMS)
        inputs = {name: given.pop(name) for name in contract.inputs if name in given}
        _require_one_value_per_pair(place, [chosen, rejected, ref_chosen, ref_rejected, *inputs.values()])
        policy = PairLogps(_stand_in(chosen), _stand_in(rejected))
        reference = PairLogps(_stand_in(ref_chosen), _stand_in(ref_rejected))
        settings = check_settings(place, contract.settings, given, place)
        return loss(policy, reference, **inputs, **settings).loss  # type: ignore[call-arg]

    door.__name__ = door.__qualname__ = place
    door.__doc__ = _DOC.format(
        name=contract.name, summary=contract.summary, keywords=", ".join(p.name for p in keywords)
    )
    vars(door)["__signature__"] = signature
    return door


dpo_loss = _on_sums(dpo)
focal_loss = _on_sums(focal)
robust_loss = _on_sums(robust)
hinge_loss = _on_sums(hinge)
convex_loss = _on_sums(convex)
discopop_loss = _on_sums(discopop)
exo_pref_loss = _on_sums(exo_pref)
exo_rw_loss = _on_sums(exo_rw)
apo_zero_loss = _on_sums(apo_zero)
apo_down_loss = _on_sums(apo_down)
nca_pair_loss = _on_sums(nca_pair)
bco_pair_loss = _on_sums(bco_pair)
sppo_loss = _on_sums(sppo)
sppo_hard_loss = _on_sums(sppo_hard)
cal_dpo_loss = _on_sums(cal_dpo)
aot_loss = _on_sums(aot)


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


def _pairs(
    place: str,
    chosen: Tensor,
    rejected: Tensor,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    like: Tensor | None = None,
) -> PairLogps:
    """Check shapes and stand each answer in by one token."""
    tensors = [chosen, rejected, chosen_lengths, rejected_lengths, like]
    _require_one_value_per_pair(place, [tensor for tensor in tensors if tensor is not None])
    return PairLogps(_stand_in(chosen, chosen_lengths), _stand_in(rejected, rejected_lengths))


def _stand_in(sums: Tensor, lengths: Tensor | None = None) -> SeqLogps:
    """Stand each answer in by one token worth its sum, or its mean where lengths are given.

    The losses behind this door read an answer's total or its mean and nothing else, and both are that
    token's value.
    """
    values = sums if lengths is None else sums / lengths
    return SeqLogps(tokens=values, lengths=(1,) * len(values))


def _require_one_value_per_pair(place: str, tensors: list[Tensor]) -> None:
    shapes = [list(tensor.shape) for tensor in tensors]
    if tensors[0].dim() != 1 or any(shape != shapes[0] for shape in shapes):
        raise ValueError(
            f"{place}: the tensors have shapes {shapes}. Give one value per pair, [P], everywhere."
        )


def _pay(loss: Loss, place: str, *logps: PairLogps, **settings: Any) -> Tensor:
    return loss(*logps, **check_settings(place, contract_of(loss).settings, settings, place)).loss


if not TYPE_CHECKING:  # hidden from type checkers, who would otherwise accept any name

    def __getattr__(name: str) -> Any:
        if name in _INSTEAD:
            raise AttributeError(f"prefopt.losses.functional has no {name}. {_INSTEAD[name]}")
        raise AttributeError(f"module 'prefopt.losses.functional' has no attribute '{name}'")
