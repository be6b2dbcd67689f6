"""Every pair loss that TRL ships, against TRL's own ``DPOTrainer._compute_loss`` on random log-probs.

No model runs: a stub hands the method what its fused head would return, so values and gradients are
compared in float64, token by token. Where the two disagree on purpose, a test says by how much.
"""

from __future__ import annotations

import re
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl_names
from torch import Tensor

from prefopt.assemble.loss import build_loss
from prefopt.losses import (
    Loss,
    aot,
    aot_unpaired,
    apo_down,
    apo_zero,
    bco_pair,
    bound,
    contract_of,
    convex,
    discopop,
    dpo,
    dpo_norm,
    exo_pref,
    f_div,
    hinge,
    ipo,
    mixed,
    nca_pair,
    robust,
    sppo_hard,
    with_nll,
)
from prefopt.types import LabelledLogps, PairLogps, SeqLogps

trl = pytest.importorskip("trl", minversion="1.16", reason="needs trl 1.16, whose trainer is the oracle")

NUM_PAIRS = 6
TOKENS = 7  # of the longest answer
PROMPT = 2  # positions before it


class Batch:
    """Log-probs of padded pairs, all chosen first, as TRL's head returns them: zero off the answer."""

    def __init__(self, dtype: torch.dtype = torch.float64, spread: float = 2.0) -> None:
        generator = torch.Generator().manual_seed(0)
        rows = 2 * NUM_PAIRS
        lengths = torch.randint(1, TOKENS + 1, (rows, 1), generator=generator)
        position = torch.arange(PROMPT + TOKENS) - PROMPT
        self.completion_mask = ((position >= 0) & (position < lengths)).long()  # [2 P, T + 1]
        self.mask = self.completion_mask[:, 1:]
        drawn = -spread * torch.rand(2, rows, self.mask.shape[1], generator=generator, dtype=torch.float64)
        drawn = (drawn * self.mask).to(dtype)
        self.policy, self.reference = drawn[0].requires_grad_(), drawn[1]

    def ours(self, loss: Loss) -> Tensor:
        policy = PairLogps.from_concatenated(self.policy, self.mask)
        reference = PairLogps.from_concatenated(self.reference, self.mask)
        inputs = {}
        if "mean_chosen_length" in contract_of(loss).inputs:
            inputs["mean_chosen_length"] = policy.chosen.length.mean()
        return loss(policy, reference, **inputs).loss.mean()

    def theirs(
        self, *loss_type: str, loss_weights: tuple[float, ...] | None = None, **settings: Any
    ) -> Tensor:
        """Call TRL's method on a stand-in for the trainer, with its defaults where ``settings`` is silent."""
        defaults = trl.DPOConfig.__dataclass_fields__
        chosen = {
            name: settings.pop(name, defaults[name].default)
            for name in ("beta", "label_smoothing", "f_divergence_type", "f_alpha_divergence_coef")
        }
        trainer = SimpleNamespace(
            **chosen,
            loss_types=list(loss_type),
            loss_weights=list(loss_weights or [1.0] * len(loss_type)),
            args=SimpleNamespace(discopop_tau=settings.pop("discopop_tau", 0.05)),
            ld_alpha=None,
            use_weighting=False,
            model=SimpleNamespace(training=True),
            accelerator=SimpleNamespace(
                device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x
            ),
            precompute_ref_logps=True,
            aux_loss_enabled=False,
            _metrics={"train": defaultdict(list)},
            _total_train_tokens=0,
            _tp_size=1,
        )
        assert not settings, f"the stub knows no {', '.join(settings)}"
        return trl.DPOTrainer._compute_loss(trainer, self._model, self._inputs(), False)

    def _model(self, **_: Any) -> SimpleNamespace:
        zero = torch.zeros_like(self.reference)
        return SimpleNamespace(
            log_probs=self.policy,
            entropy=zero,
            mean_logits=zero,
            is_top1=zero.bool(),
        )

    def _inputs(self) -> dict[str, Tensor]:
        chosen, rejected = self.reference.sum(dim=1).chunk(2)
        return {
            "input_ids": torch.zeros_like(self.completion_mask),
            "attention_mask": torch.ones_like(self.completion_mask),
            "completion_mask": self.completion_mask,
            "ref_chosen_logps": chosen,
            "ref_rejected_logps": rejected,
        }


def smoothed(loss: Loss, rate: float) -> Loss:
    return bound(loss, beta=0.3, label_smoothing=rate)


CASES = {
    "sigmoid": (bound(dpo, beta=0.3, label_smoothing=0.0), {}),
    "sigmoid_norm": (bound(dpo_norm, beta=0.3, label_smoothing=0.0), {}),
    "hinge": (bound(hinge, beta=0.3), {}),
    "ipo": (bound(ipo, beta=0.3), {}),
    "exo_pair": (smoothed(exo_pref, 1e-3), {"label_smoothing": 1e-3}),
    "nca_pair": (bound(nca_pair, beta=0.3), {}),
    "robust": (smoothed(robust, 0.1), {"label_smoothing": 0.1}),
    "bco_pair": (bound(bco_pair, beta=0.3), {}),
    "apo_zero": (bound(apo_zero, beta=0.3), {}),
    "apo_down": (bound(apo_down, beta=0.3), {}),
    "aot": (smoothed(aot, 0.1), {"label_smoothing": 0.1}),
    "discopop": (bound(discopop, beta=0.3, tau=0.4), {"discopop_tau": 0.4}),
}
F_DIV = ("sigmoid", "hinge", "ipo", "exo_pair", "robust", "discopop")
"""The losses that TRL gives another divergence."""


def assert_equal(batch: Batch, ours: Tensor, theirs: Tensor, rtol: float = 1e-6) -> None:
    """Compare the mean over pairs and its gradient at every token; 1e-6 is one float32 constant in TRL."""
    # TRL sums off the answer too, where its head returns constant zeros
    gradients = [torch.autograd.grad(loss, batch.policy)[0] * batch.mask for loss in (ours, theirs)]
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol)
    torch.testing.assert_close(*gradients, rtol=rtol, atol=rtol)
    assert gradients[1].abs().max() > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_equal_trl(name):
    loss, settings = CASES[name]
    batch = Batch()
    assert_equal(batch, batch.ours(loss), batch.theirs(name, beta=0.3, **settings))


TABLE = trl_names.losses("DPO")
ELSEWHERE = {"aot_unpaired", "sft"}
"""Of labelled answers, and of chosen answers alone: by the test of the one and that of TRL's recipe for MPO."""


@pytest.mark.parametrize("name", sorted(TABLE.keys() - ELSEWHERE))
def test_the_block_that_the_guide_gives_for_a_name_of_trls_is_that_loss(name):
    """At TRL's defaults; EXO has none for its smoothing."""
    batch = Batch()
    theirs = batch.theirs(name, **({"label_smoothing": 1e-3} if name == "exo_pair" else {}))
    assert_equal(
        batch, batch.ours(build_loss(TABLE[name]).loss), theirs * (0.5 if name == "sppo_hard" else 1.0)
    )


def test_the_guide_names_every_loss_of_trl():
    """Those that its settings say there are."""
    for config, trainer in ((trl.DPOConfig, "DPO"), (trl.KTOConfig, "KTO")):
        said = re.search(
            r"Type of loss to use\. Possible values are:(.*?)\n {8}\w+ \(`", config.__doc__, re.DOTALL
        )
        names = re.findall(r"`[\"'](\w+)[\"']`", said[1])
        assert set(names) == trl_names.losses(trainer).keys()


@pytest.mark.parametrize("name", F_DIV)
@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "js"])
def test_every_divergence_equals_trl_on_every_loss_it_allows(name, divergence):
    loss, settings = CASES[name]
    batch = Batch(spread=0.7)  # log-ratios within +-3, so that TRL's unclamped exponentials stay small
    spelled = {"js": "js_divergence"}.get(divergence, divergence)
    theirs = batch.theirs(name, beta=0.3, f_divergence_type=spelled, **settings)
    assert_equal(batch, batch.ours(f_div(loss, divergence=divergence)), theirs)


@pytest.mark.parametrize("name", F_DIV)
@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.9])
def test_alpha_divergence_equals_trl_at_one_minus_our_alpha(name, alpha):
    """In float32, for TRL's table of clamps has no float64; sums near 5 leave 5e-7 of rounding."""
    loss, settings = CASES[name]
    batch = Batch(torch.float32, spread=0.7)
    theirs = batch.theirs(
        name, beta=0.3, f_divergence_type="alpha_divergence", f_alpha_divergence_coef=1.0 - alpha, **settings
    )
    assert_equal(batch, batch.ours(f_div(loss, alpha=alpha)), theirs)


def test_the_two_alphas_agree_only_at_one_half():
    """TRL's score is (e^((c - 1) h) - 1) / (c - 1), the paper's (1 - e^(-alpha h)) / alpha: c = 1 - alpha."""
    batch = Batch(torch.float32, spread=0.7)
    for alpha, is_same in ((0.2, False), (0.5, True)):
        theirs = batch.theirs("sigmoid", f_divergence_type="alpha_divergence", f_alpha_divergence_coef=alpha)
        ours = batch.ours(f_div(bound(dpo, beta=0.1), alpha=alpha))
        assert (abs(ours - theirs).item() < 1e-6) == is_same


def test_unpaired_aot_of_as_many_on_either_side_equals_trl():
    """Each answer pays for its match, and every match has two answers: the mean is TRL's over matches."""
    batch = Batch()
    labels = torch.arange(2 * NUM_PAIRS) < NUM_PAIRS
    policy, reference = (
        LabelledLogps(SeqLogps.from_padded(logps, batch.mask), labels)
        for logps in (batch.policy, batch.reference)
    )
    ours = aot_unpaired(policy, reference, beta=0.3, label_smoothing=0.1).loss.mean()
    assert_equal(batch, ours, batch.theirs("aot_unpaired", beta=0.3, label_smoothing=0.1))


def test_sppo_hard_is_half_of_trls():
    """TRL leaves the factor 1 / 2 of the paper's code out."""
    batch = Batch()
    ours = batch.ours(bound(sppo_hard, beta=0.3))
    assert_equal(batch, 2.0 * ours, batch.theirs("sppo_hard", beta=0.3))


def test_the_squared_link_is_trls_ipo_on_one_token_answers():
    """(b D - 1)^2 = b^2 * (D - 1 / b)^2, and TRL's target 1 / (2 beta) is 1 / b at beta = b / 2."""
    batch = Batch()
    batch.completion_mask[:, PROMPT + 1 :] = 0
    batch.policy = (batch.policy.detach() * batch.mask).requires_grad_()
    batch.reference = batch.reference * batch.mask
    ours = batch.ours(bound(convex, beta=0.6, link="squared"))
    assert_equal(batch, ours, 0.36 * batch.theirs("ipo", beta=0.3))


def test_mixed_preference_optimization_equals_trls_recipe():
    """0.8 * dpo + 0.2 * bco_pair + 1.0 * NLL per token of the batch: TRL's recipe for MPO."""
    batch = Batch()
    pair_terms = mixed([bound(dpo, beta=0.1), bound(bco_pair, beta=0.1)], [0.8, 0.2])
    ours = batch.ours(with_nll(pair_terms, alpha=1.0, nll="batch_token"))
    theirs = batch.theirs("sigmoid", "bco_pair", "sft", loss_weights=(0.8, 0.2, 1.0), beta=0.1)
    assert_equal(batch, ours, theirs)
