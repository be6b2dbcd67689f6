"""Preference losses: pure functions from log-probs to one cost per unit.

``LOSSES`` is the table of losses a recipe can name, ``TRANSFORMS`` what its ``with:`` list can apply to
them; ``mixed`` adds several up. The signature of a loss is its contract (``contract_of``). For trainers
that hold only sums of log-probs there is ``prefopt.losses.functional``.

Adding a loss takes one file, one line in ``LOSSES`` and one test file with numbers worked by hand.
"""

from collections.abc import Callable

from prefopt.losses._combine import bound, length_desensitized, mixed, weighted, with_nll
from prefopt.losses._contract import Loss, LossContract, Setting, contract_of, settings_of
from prefopt.losses.alpha_margin import alpha_margin
from prefopt.losses.alphapo import alphapo
from prefopt.losses.aot import aot, aot_unpaired
from prefopt.losses.apo import apo_down, apo_zero
from prefopt.losses.bco import bco, bco_unpaired
from prefopt.losses.bco_pair import bco_pair
from prefopt.losses.beta_dynamic import beta_dynamic
from prefopt.losses.cal_dpo import cal_dpo
from prefopt.losses.convex import convex
from prefopt.losses.cpo import cpo
from prefopt.losses.discopop import discopop
from prefopt.losses.dpo import dpo
from prefopt.losses.dpo_norm import dpo_norm
from prefopt.losses.dpop import dpop
from prefopt.losses.exo_k import exo_k
from prefopt.losses.exo_pair import exo_pref, exo_rw
from prefopt.losses.f_div import f_div
from prefopt.losses.flex import flex
from prefopt.losses.focal import focal
from prefopt.losses.focal_hard import focal_hard
from prefopt.losses.hinge import hinge
from prefopt.losses.ipo import ipo
from prefopt.losses.joint_prompt import joint_prompt
from prefopt.losses.kto import apo_zero_unpaired, kto
from prefopt.losses.ld_dpo import ld_dpo
from prefopt.losses.mapo import mapo
from prefopt.losses.mappo import mappo, prior_scaled
from prefopt.losses.nca_k import infonca_k, nca_k
from prefopt.losses.nca_pair import nca_pair
from prefopt.losses.offset import offset
from prefopt.losses.orpo import orpo
from prefopt.losses.plackett_luce import plackett_luce
from prefopt.losses.pmpo import pmpo
from prefopt.losses.pro_rank import pro_rank
from prefopt.losses.prompt_contrast import prompt_contrast
from prefopt.losses.rationale import rationale, with_rationale
from prefopt.losses.rdpo_length import rdpo_length
from prefopt.losses.ref_scale import ref_scale
from prefopt.losses.references import momentum_ref, multi_ref, spo_sequential
from prefopt.losses.relative import relative
from prefopt.losses.reverse import reverse
from prefopt.losses.reward_aware import reward_aware
from prefopt.losses.reward_gap_weight import reward_gap_weight
from prefopt.losses.robust import robust
from prefopt.losses.rrhf import rrhf
from prefopt.losses.sft import sft
from prefopt.losses.sgdpo import sgdpo
from prefopt.losses.simpo import simpo
from prefopt.losses.slic import slic
from prefopt.losses.soft_label import soft_label
from prefopt.losses.sparse_mask import sparse_mask, sparse_mask_independent
from prefopt.losses.spo_selfsup import spo_selfsup
from prefopt.losses.sppo import sppo, sppo_hard
from prefopt.losses.sppo_k import sppo_k
from prefopt.losses.suffix_from_divergence import suffix_from_divergence
from prefopt.losses.tdpo import tdpo
from prefopt.losses.token_weighted import token_weighted
from prefopt.losses.tree import tree
from prefopt.losses.triple import triple
from prefopt.losses.wpo import wpo

LOSSES: dict[str, Loss] = {
    "dpo": dpo,
    "ipo": ipo,
    "simpo": simpo,
    "focal": focal,
    "wpo": wpo,
    "ld_dpo": ld_dpo,
    "sft": sft,
    "dpo_norm": dpo_norm,
    "dpop": dpop,
    "rdpo_length": rdpo_length,
    "mappo": mappo,
    "ref_scale": ref_scale,
    "flex": flex,
    "reward_aware": reward_aware,
    "focal_hard": focal_hard,
    "offset": offset,
    "reverse": reverse,
    "soft_label": soft_label,
    "spo_selfsup": spo_selfsup,
    "sgdpo": sgdpo,
    "cpo": cpo,
    "orpo": orpo,
    "alphapo": alphapo,
    "triple": triple,
    "rationale": rationale,
    "robust": robust,
    "hinge": hinge,
    "slic": slic,
    "convex": convex,
    "discopop": discopop,
    "exo_pref": exo_pref,
    "exo_rw": exo_rw,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "nca_pair": nca_pair,
    "bco_pair": bco_pair,
    "sppo": sppo,
    "sppo_hard": sppo_hard,
    "cal_dpo": cal_dpo,
    "joint_prompt": joint_prompt,
    "prompt_contrast": prompt_contrast,
    "plackett_luce": plackett_luce,
    "pro_rank": pro_rank,
    "rrhf": rrhf,
    "infonca_k": infonca_k,
    "nca_k": nca_k,
    "exo_k": exo_k,
    "tree": tree,
    "sppo_k": sppo_k,
    "pmpo": pmpo,
    "tdpo": tdpo,
    "mapo": mapo,
    "sparse_mask": sparse_mask,
    "sparse_mask_independent": sparse_mask_independent,
    "aot": aot,
    "aot_unpaired": aot_unpaired,
    "relative": relative,
    "beta_dynamic": beta_dynamic,
    "alpha_margin": alpha_margin,
    "bco": bco,
    "bco_unpaired": bco_unpaired,
    "kto": kto,
    "apo_zero_unpaired": apo_zero_unpaired,
}
"""The losses a recipe can name."""

TRANSFORMS: dict[str, Callable[..., Loss]] = {
    "with_nll": with_nll,
    "prior_scaled": prior_scaled,
    "f_div": f_div,
    "length_desensitized": length_desensitized,
    "weighted": weighted,
    "reward_gap_weight": reward_gap_weight,
    "with_rationale": with_rationale,
    "token_weighted": token_weighted,
    "suffix_from_divergence": suffix_from_divergence,
    "multi_ref": multi_ref,
    "momentum_ref": momentum_ref,
    "spo_sequential": spo_sequential,
}
"""The transforms a recipe can apply to a loss, each from loss to loss."""

__all__ = [
    "LOSSES",
    "TRANSFORMS",
    "Loss",
    "LossContract",
    "Setting",
    "alpha_margin",
    "alphapo",
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "apo_zero_unpaired",
    "bco",
    "bco_pair",
    "bco_unpaired",
    "beta_dynamic",
    "bound",
    "cal_dpo",
    "contract_of",
    "convex",
    "cpo",
    "discopop",
    "dpo",
    "dpo_norm",
    "dpop",
    "exo_k",
    "exo_pref",
    "exo_rw",
    "f_div",
    "flex",
    "focal",
    "focal_hard",
    "hinge",
    "infonca_k",
    "ipo",
    "joint_prompt",
    "kto",
    "ld_dpo",
    "length_desensitized",
    "mapo",
    "mappo",
    "mixed",
    "momentum_ref",
    "multi_ref",
    "nca_k",
    "nca_pair",
    "offset",
    "orpo",
    "plackett_luce",
    "pmpo",
    "prior_scaled",
    "pro_rank",
    "prompt_contrast",
    "rationale",
    "rdpo_length",
    "ref_scale",
    "relative",
    "reverse",
    "reward_aware",
    "reward_gap_weight",
    "robust",
    "rrhf",
    "settings_of",
    "sft",
    "sgdpo",
    "simpo",
    "slic",
    "soft_label",
    "sparse_mask",
    "sparse_mask_independent",
    "spo_selfsup",
    "spo_sequential",
    "sppo",
    "sppo_hard",
    "sppo_k",
    "suffix_from_divergence",
    "tdpo",
    "token_weighted",
    "tree",
    "triple",
    "weighted",
    "with_nll",
    "with_rationale",
    "wpo",
]
