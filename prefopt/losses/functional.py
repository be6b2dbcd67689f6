"""The plain-tensor door: losses for trainers that hold one summed log-prob per answer.

Everything is [P]: sums of log-probs in nats, lengths in tokens; the result is the loss of each pair,
unreduced. Settings and defaults are those of the loss of the same name, and so are their ranges;
``help(dpo_loss)`` lists what a door takes.

Losses that weigh single tokens, average statistics of them or read further answers have no door: sums
are not enough. Build ``PairLogps.from_concatenated(logps, mask)`` (or ``SeqLogps.from_padded`` for
``sft``) from your per-token log-probs and call ``prefopt.losses.ld_dpo(policy, reference).loss``
instead; ``wpo`` also needs ``log_sum_p2=`` beside the log-probs. The same values take transforms:
``f_div(dpo, divergence="js")(policy, reference).loss``. Losses over lists take a ``ListLogps``.

``aot_loss`` matches quantiles over all pairs it is given, so give it all of the optimizer step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefopt.losses._door import on_policy_sums_and_lengths, on_sums, on_sums_and_lengths, on_sums_or_means
from prefopt.losses.alphapo import alphapo
from prefopt.losses.aot import aot
from prefopt.losses.apo import apo_down, apo_zero
from prefopt.losses.bco_pair import bco_pair
from prefopt.losses.cal_dpo import cal_dpo
from prefopt.losses.convex import convex
from prefopt.losses.cpo import cpo
from prefopt.losses.discopop import discopop
from prefopt.losses.dpo import dpo
from prefopt.losses.dpo_norm import dpo_norm
from prefopt.losses.dpop import dpop
from prefopt.losses.exo_pair import exo_pref, exo_rw
from prefopt.losses.flex import flex
from prefopt.losses.focal import focal
from prefopt.losses.focal_hard import focal_hard
from prefopt.losses.hinge import hinge
from prefopt.losses.ipo import ipo
from prefopt.losses.joint_prompt import joint_prompt
from prefopt.losses.mappo import mappo
from prefopt.losses.nca_pair import nca_pair
from prefopt.losses.offset import offset
from prefopt.losses.orpo import orpo
from prefopt.losses.prompt_contrast import prompt_contrast
from prefopt.losses.rdpo_length import rdpo_length
from prefopt.losses.ref_scale import ref_scale
from prefopt.losses.reverse import reverse
from prefopt.losses.reward_aware import reward_aware
from prefopt.losses.robust import robust
from prefopt.losses.simpo import simpo
from prefopt.losses.slic import slic
from prefopt.losses.soft_label import soft_label
from prefopt.losses.spo_selfsup import spo_selfsup
from prefopt.losses.sppo import sppo, sppo_hard

dpo_loss = on_sums(dpo)
focal_loss = on_sums(focal)
focal_hard_loss = on_sums(focal_hard)
robust_loss = on_sums(robust)
hinge_loss = on_sums(hinge)
convex_loss = on_sums(convex)
discopop_loss = on_sums(discopop)
exo_pref_loss = on_sums(exo_pref)
exo_rw_loss = on_sums(exo_rw)
apo_zero_loss = on_sums(apo_zero)
apo_down_loss = on_sums(apo_down)
nca_pair_loss = on_sums(nca_pair)
bco_pair_loss = on_sums(bco_pair)
sppo_loss = on_sums(sppo)
sppo_hard_loss = on_sums(sppo_hard)
cal_dpo_loss = on_sums(cal_dpo)
dpop_loss = on_sums(dpop)
mappo_loss = on_sums(mappo)
ref_scale_loss = on_sums(ref_scale)
flex_loss = on_sums(flex)
offset_loss = on_sums(offset)
reverse_loss = on_sums(reverse)
soft_label_loss = on_sums(soft_label)
spo_selfsup_loss = on_sums(spo_selfsup)
joint_prompt_loss = on_sums(joint_prompt)
prompt_contrast_loss = on_sums(prompt_contrast)
aot_loss = on_sums(aot)

dpo_norm_loss = on_sums_and_lengths(dpo_norm)
rdpo_length_loss = on_sums_and_lengths(rdpo_length)

ipo_loss = on_sums_or_means(ipo)
reward_aware_loss = on_sums_or_means(reward_aware)

simpo_loss = on_policy_sums_and_lengths(simpo)
slic_loss = on_policy_sums_and_lengths(slic)
cpo_loss = on_policy_sums_and_lengths(cpo)
orpo_loss = on_policy_sums_and_lengths(orpo)
alphapo_loss = on_policy_sums_and_lengths(alphapo)

LISTS = ("plackett_luce", "pro_rank", "rrhf", "infonca_k", "nca_k", "exo_k", "tree", "sppo_k")

_INSTEAD = {
    "wpo_loss": "It averages per-token values. Build PairLogps.from_concatenated(logps, mask, log_sum_p2=...) "
    "from [2 P, T] tensors and call prefopt.losses.wpo(policy, reference).",
    "ld_dpo_loss": "It weighs tokens by place. Build PairLogps.from_concatenated(logps, mask) from [2 P, T] "
    "per-token log-probs and call prefopt.losses.ld_dpo(policy, reference).",
    "sgdpo_loss": "It samples tokens. Build PairLogps.from_concatenated(logps, mask) from [2 P, T] per-token "
    "log-probs and call prefopt.losses.sgdpo(policy, reference, pair_seed=...).",
    "triple_loss": "It reads a third answer. Build PairLogps(chosen, rejected, {'gold': gold}), each from "
    "SeqLogps.from_padded(logps, mask), and call prefopt.losses.triple(policy).",
    "rationale_loss": "It reads a third answer. Build PairLogps(chosen, rejected, {'rationale': text}), each "
    "from SeqLogps.from_padded(logps, mask), and call prefopt.losses.rationale(policy, reference).",
    "tdpo_loss": "It reads a divergence per token. Build PairLogps.from_concatenated(logps, mask, kl=...) from "
    "[2 P, T] tensors, kl by prefopt.kernels.token_kl, and call prefopt.losses.tdpo(policy, reference).",
    "mapo_loss": "It weighs tokens. Build PairLogps.from_concatenated(logps, mask, kl=..., activation=...) from "
    "[2 P, T] tensors and call prefopt.losses.mapo(policy, reference).",
    "sparse_mask_loss": "It weighs tokens. Build PairLogps.from_concatenated(logps, mask, kl=..., "
    "reward_mask=...) from [2 P, T] tensors and call prefopt.losses.sparse_mask(policy, reference).",
    "sparse_mask_independent_loss": "It weighs tokens. Build PairLogps.from_concatenated(logps, mask, kl=..., "
    "reward_mask=..., kl_mask=...) from [2 P, T] tensors and call "
    "prefopt.losses.sparse_mask_independent(policy, reference).",
    "pmpo_loss": "It reads a divergence per token. Build LabelledLogps(SeqLogps.from_padded(logps, mask, kl=...), "
    "is_desirable) from [S, T] tensors and call prefopt.losses.pmpo(policy, reference, desirable_share=...).",
    "kto_loss": "It measures the drift on answers to other prompts. Build LabelledLogps(answers, is_desirable, "
    "{'kl': mismatched}), both from SeqLogps.from_padded(logps, mask), of policy and reference, and call "
    "prefopt.losses.kto(policy, reference).",
    "sft_loss": "Build SeqLogps.from_padded(logps, mask) from [S, T] per-token log-probs and call "
    "prefopt.losses.sft(policy).",
    "relative_loss": "It compares prompts. Build PairLogps.from_concatenated(logps, mask) from all 2 P rows of the "
    "step and call prefopt.losses.relative(policy, reference, prompt_embedding=...).",
    **{
        f"{name}_loss": "It carries averages from step to step. Build PairLogps.from_concatenated(logps, mask) "
        f"from all 2 P rows of the step and call prefopt.losses.{name}(policy, reference, **carried) with what "
        f"the last call returned as carried."
        for name in ("bco", "beta_dynamic", "alpha_margin")
    },
    **{
        f"{name}_loss": "It learns from single answers. Build LabelledLogps(SeqLogps.from_padded(logps, mask), "
        f"is_desirable) from [S, T] per-token log-probs and call prefopt.losses.{name}(policy, reference)."
        for name in ("aot_unpaired", "bco_unpaired", "apo_zero_unpaired")
    },
    **{
        f"{name}_loss": "It compares whole lists. Build ListLogps(SeqLogps.from_padded(logps, mask), group_sizes) from "
        f"[S, T] per-token log-probs and call prefopt.losses.{name}(policy, ..., answer_score=scores)."
        for name in LISTS
    },
    "cdpo_loss": "Call dpo_loss with label_smoothing above 0.",
}


if not TYPE_CHECKING:  # hidden from type checkers, who would otherwise accept any name

    def __getattr__(name: str) -> Any:
        if name in _INSTEAD:
            raise AttributeError(f"prefopt.losses.functional has no {name}. {_INSTEAD[name]}")
        raise AttributeError(f"module 'prefopt.losses.functional' has no attribute '{name}'")
