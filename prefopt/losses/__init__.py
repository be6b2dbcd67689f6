"""Preference losses: pure functions from log-probs to one cost per unit.

``LOSSES`` is the table of losses a recipe can name, ``TRANSFORMS`` what its ``with:`` list can apply to
them; ``mixed`` adds several up, ``bound`` closes settings. The signature of a loss is its contract
(``contract_of``). For trainers that hold only sums of log-probs there is ``prefopt.losses.functional``.

Adding a loss takes a file, its line here (the import and the entry in ``LOSSES``) and a test file with numbers
worked by hand; CONTRIBUTING.md walks through one.

One paper, one file. The families, each after its plainest member:

- pairs by their sums of log-probs: ``dpo``; without a reference ``simpo``; with scores of the data ``offset``
- pairs by their tokens: ``ld_dpo``; with a divergence per token ``tdpo``; with a third answer ``triple``
- lists of answers: ``plackett_luce``
- single answers: ``sft``; labelled as wanted or not ``kto``, also the ``_unpaired`` ones beside their pair forms
- the whole optimizer step at once: ``aot``; carrying averages to the next step ``bco``
- transforms: ``with_nll`` and others for any loss in ``_combine``, several references in ``references``, one file each
  like ``f_div``; ``prior_scaled`` and ``with_rationale`` beside the loss that contains them

Helpers, which no user imports: ``_terms`` (links, rewards, likelihood and ``stop``, the only way to detach), ``_lists``
(groups of unequal size as a table), ``_step`` (averages and quantiles over a step), ``_contract`` (reads a signature),
``_settings`` (checks what is given), ``_door`` (refuses a call, and rounds what it returns), ``_compose`` (what
transforms are built from), ``_on_sums`` (what ``functional`` is made by).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from prefopt.losses._combine import bound as bound
from prefopt.losses._combine import length_desensitized as length_desensitized
from prefopt.losses._combine import mixed as mixed
from prefopt.losses._combine import weighted as weighted
from prefopt.losses._combine import with_nll as with_nll
from prefopt.losses._contract import Loss as Loss
from prefopt.losses._contract import LossContract as LossContract
from prefopt.losses._contract import contract_of as contract_of
from prefopt.losses._contract import settings_of as settings_of
from prefopt.losses._settings import Setting as Setting
from prefopt.losses.alpha_margin import alpha_margin as alpha_margin
from prefopt.losses.alphapo import alphapo as alphapo
from prefopt.losses.aot import aot as aot
from prefopt.losses.aot import aot_unpaired as aot_unpaired
from prefopt.losses.apo import apo_down as apo_down
from prefopt.losses.apo import apo_zero as apo_zero
from prefopt.losses.bco import bco as bco
from prefopt.losses.bco import bco_unpaired as bco_unpaired
from prefopt.losses.bco_pair import bco_pair as bco_pair
from prefopt.losses.beta_dynamic import beta_dynamic as beta_dynamic
from prefopt.losses.cal_dpo import cal_dpo as cal_dpo
from prefopt.losses.convex import convex as convex
from prefopt.losses.cpo import cpo as cpo
from prefopt.losses.discopop import discopop as discopop
from prefopt.losses.dpo import dpo as dpo
from prefopt.losses.dpo_norm import dpo_norm as dpo_norm
from prefopt.losses.dpop import dpop as dpop
from prefopt.losses.exo_k import exo_k as exo_k
from prefopt.losses.exo_pair import exo_pref as exo_pref
from prefopt.losses.exo_pair import exo_rw as exo_rw
from prefopt.losses.f_div import f_div as f_div
from prefopt.losses.flex import flex as flex
from prefopt.losses.focal import focal as focal
from prefopt.losses.focal_hard import focal_hard as focal_hard
from prefopt.losses.hinge import hinge as hinge
from prefopt.losses.ipo import ipo as ipo
from prefopt.losses.joint_prompt import joint_prompt as joint_prompt
from prefopt.losses.kto import apo_zero_unpaired as apo_zero_unpaired
from prefopt.losses.kto import kto as kto
from prefopt.losses.ld_dpo import ld_dpo as ld_dpo
from prefopt.losses.mapo import mapo as mapo
from prefopt.losses.mappo import mappo as mappo
from prefopt.losses.mappo import prior_scaled as prior_scaled
from prefopt.losses.nca_k import infonca_k as infonca_k
from prefopt.losses.nca_k import nca_k as nca_k
from prefopt.losses.nca_pair import nca_pair as nca_pair
from prefopt.losses.offset import offset as offset
from prefopt.losses.orpo import orpo as orpo
from prefopt.losses.plackett_luce import plackett_luce as plackett_luce
from prefopt.losses.pmpo import pmpo as pmpo
from prefopt.losses.pro_rank import pro_rank as pro_rank
from prefopt.losses.prompt_contrast import prompt_contrast as prompt_contrast
from prefopt.losses.rationale import rationale as rationale
from prefopt.losses.rationale import with_rationale as with_rationale
from prefopt.losses.rdpo_length import rdpo_length as rdpo_length
from prefopt.losses.ref_scale import ref_scale as ref_scale
from prefopt.losses.references import momentum_ref as momentum_ref
from prefopt.losses.references import multi_ref as multi_ref
from prefopt.losses.references import spo_sequential as spo_sequential
from prefopt.losses.relative import relative as relative
from prefopt.losses.reverse import reverse as reverse
from prefopt.losses.reward_aware import reward_aware as reward_aware
from prefopt.losses.reward_gap_weight import reward_gap_weight as reward_gap_weight
from prefopt.losses.robust import robust as robust
from prefopt.losses.rrhf import rrhf as rrhf
from prefopt.losses.sft import sft as sft
from prefopt.losses.sgdpo import sgdpo as sgdpo
from prefopt.losses.simpo import simpo as simpo
from prefopt.losses.slic import slic as slic
from prefopt.losses.soft_label import soft_label as soft_label
from prefopt.losses.sparse_mask import sparse_mask as sparse_mask
from prefopt.losses.sparse_mask import sparse_mask_independent as sparse_mask_independent
from prefopt.losses.spo_selfsup import spo_selfsup as spo_selfsup
from prefopt.losses.sppo import sppo as sppo
from prefopt.losses.sppo import sppo_hard as sppo_hard
from prefopt.losses.sppo_k import sppo_k as sppo_k
from prefopt.losses.suffix_from_divergence import suffix_from_divergence as suffix_from_divergence
from prefopt.losses.tdpo import tdpo as tdpo
from prefopt.losses.token_weighted import token_weighted as token_weighted
from prefopt.losses.tree import tree as tree
from prefopt.losses.triple import triple as triple
from prefopt.losses.wpo import wpo as wpo

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

# A type checker cannot read a computed list; to it `import ... as` says which names are public.
if not TYPE_CHECKING:
    __all__ = [*LOSSES, *TRANSFORMS, "LOSSES", "TRANSFORMS", "Loss", "LossContract", "Setting"]  # noqa: PLE0604
    __all__ += ["bound", "contract_of", "mixed", "settings_of"]
