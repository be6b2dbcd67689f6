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
from prefopt.losses.aot import aot, aot_unpaired
from prefopt.losses.bco import bco, bco_unpaired
from prefopt.losses.beta_dynamic import beta_dynamic
from prefopt.losses.dpo import dpo
from prefopt.losses.focal import focal
from prefopt.losses.ipo import ipo
from prefopt.losses.kto import apo_zero_unpaired, kto
from prefopt.losses.ld_dpo import ld_dpo
from prefopt.losses.relative import relative
from prefopt.losses.sft import sft
from prefopt.losses.simpo import simpo
from prefopt.losses.wpo import wpo

LOSSES: dict[str, Loss] = {
    "dpo": dpo,
    "ipo": ipo,
    "simpo": simpo,
    "focal": focal,
    "wpo": wpo,
    "ld_dpo": ld_dpo,
    "sft": sft,
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
    "length_desensitized": length_desensitized,
    "weighted": weighted,
}
"""The transforms a recipe can apply to a loss, each from loss to loss."""

__all__ = [
    "LOSSES",
    "TRANSFORMS",
    "Loss",
    "LossContract",
    "Setting",
    "alpha_margin",
    "aot",
    "aot_unpaired",
    "apo_zero_unpaired",
    "bco",
    "bco_unpaired",
    "beta_dynamic",
    "bound",
    "contract_of",
    "dpo",
    "focal",
    "ipo",
    "kto",
    "ld_dpo",
    "length_desensitized",
    "mixed",
    "relative",
    "settings_of",
    "sft",
    "simpo",
    "weighted",
    "with_nll",
    "wpo",
]
