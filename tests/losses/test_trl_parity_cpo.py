"""CPO, SimPO, AlphaPO, ORPO and triple PO against the experimental trainers of TRL, on random logits.

No model runs: the trainers' own methods are called on objects that were never set up, with a stand-in for
the model that returns the logits. Where the two disagree on purpose, a test says by how much.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl_names
from torch import Tensor

from prefopt.assemble.loss import build_loss
from prefopt.losses import Loss, alphapo, bound, contract_of, cpo, ipo, orpo, simpo, triple, with_nll
from prefopt.types import PairLogps, SeqLogps

REASON = "needs the experimental trainers of trl 1.16, which are the oracle"
pytest.importorskip("trl", minversion="1.16", reason=REASON)
trl_cpo = pytest.importorskip("trl.experimental.cpo", reason=REASON)
trl_orpo = pytest.importorskip("trl.experimental.orpo", reason=REASON)
trl_tpo = pytest.importorskip("trl.experimental.tpo", reason=REASON)

NUM_PAIRS = 5
TOKENS = 6  # of the longest answer
WORDS = 11
ACCELERATOR = SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x)


class Batch:
    """Random logits of padded sequences, all chosen first, then all rejected, then gold ones if asked for."""

    def __init__(self, prompt: int = 1, branches: int = 2, equal_gold: bool = True) -> None:
        generator = torch.Generator().manual_seed(0)
        rows = branches * NUM_PAIRS
        lengths = torch.randint(1, TOKENS + 1, (rows, 1), generator=generator)
        if branches == 3 and equal_gold:
            lengths[2 * NUM_PAIRS :] = 4
        position = torch.arange(prompt + TOKENS)
        self.attention_mask = (position < prompt + lengths).long()
        self.answer_mask = self.attention_mask * (position >= prompt)
        self.input_ids = torch.randint(WORDS, self.attention_mask.shape, generator=generator)
        shape = (*self.input_ids.shape, WORDS)
        self.logits = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    def token_logps(self) -> Tensor:
        """Log-prob of every token but the first, [rows, T - 1]."""
        logps = self.logits[:, :-1].log_softmax(dim=-1)
        return logps.gather(2, self.input_ids[:, 1:, None]).squeeze(2)

    def sides(self) -> list[SeqLogps]:
        answers = SeqLogps.from_padded(self.token_logps(), self.answer_mask[:, 1:])
        starts = range(0, len(answers), NUM_PAIRS)
        return [answers.take(range(start, start + NUM_PAIRS)) for start in starts]

    def ours(self, loss: Loss) -> Tensor:
        chosen, rejected, *gold = self.sides()
        policy = PairLogps(chosen, rejected, dict(zip(["gold"], gold, strict=False)))
        inputs = {}
        if "mean_chosen_length" in contract_of(loss).inputs:
            inputs["mean_chosen_length"] = chosen.length.mean()
        return loss(policy, **inputs).loss.mean()

    def model(self, *_: Any, **__: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits)

    def pairs(self) -> dict[str, Tensor]:
        labels = self.input_ids.masked_fill(self.answer_mask == 0, -100)
        columns = {"input_ids": self.input_ids, "attention_mask": self.attention_mask, "labels": labels}
        batch = {}
        for name, values in columns.items():
            batch[f"chosen_{name}"], batch[f"rejected_{name}"] = values.chunk(2)
        return batch

    def their_cpo(self, **settings: Any) -> Tensor:
        defaults = {"alpha": 0.0, "beta": 0.1, "cpo_alpha": 1.0, "label_smoothing": 0.0, "simpo_gamma": 0.5}
        trainer = never_set_up(trl_cpo.CPOTrainer, **(defaults | {"loss_type": "sigmoid"} | settings))
        return trainer.get_batch_loss_metrics(self.model, self.pairs())[0]

    def their_orpo(self, beta: float) -> Tensor:
        trainer = never_set_up(trl_orpo.ORPOTrainer, beta=beta)
        return trainer.get_batch_loss_metrics(self.model, self.pairs())[0]

    def their_tpo(self, **settings: Any) -> Tensor:
        defaults = {"beta": 0.01, "tpo_alpha": 1.0, "tpo_l_gamma": 0.5, "label_smoothing": 0.0}
        trainer = never_set_up(trl_tpo.TPOTrainer, **(defaults | {"loss_type": "sigmoid"} | settings))
        model = type("Model", (), {"training": True, "__call__": lambda *_, **__: self.model()})()
        trainer.model = model
        inputs = {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "completion_mask": self.answer_mask,
        }
        return trainer._compute_loss(model, inputs, False)


def never_set_up(kind: type, **attributes: Any) -> Any:
    """Make a trainer without its constructor, which would want models, data and folders."""
    trainer = object.__new__(kind)
    always = {
        "accelerator": ACCELERATOR,
        "is_encoder_decoder": False,
        "pad_token_id": 0,
        "padding_value": 0,
        "aux_loss_enabled": False,
        "_metrics": {"train": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    vars(trainer).update(always | attributes)
    return trainer


def assert_equal(batch: Batch, ours: Tensor, theirs: Tensor) -> None:
    """Compare the loss of the batch and its gradient at every logit, to 1e-6."""
    gradients = [torch.autograd.grad(loss, batch.logits)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)
    assert gradients[1].abs().max() > 1e-3


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_cpo(alpha, smoothing):
    batch = Batch(prompt=3)
    loss = bound(cpo, beta=0.3, alpha=alpha, label_smoothing=smoothing, nll="batch_token")
    theirs = batch.their_cpo(beta=0.3, cpo_alpha=alpha, label_smoothing=smoothing)
    assert_equal(batch, batch.ours(loss), theirs)


@pytest.mark.parametrize("link", ["hinge", "ipo"])
def test_links_of_cpo(link):
    batch = Batch(prompt=3)
    loss = bound(cpo, beta=0.3, alpha=0.7, link=link, nll="batch_token")
    assert_equal(batch, batch.ours(loss), batch.their_cpo(loss_type=link, beta=0.3, cpo_alpha=0.7))


@pytest.mark.parametrize("trainer", ["CPO", "TPO"])
def test_the_blocks_that_the_guide_gives_for_names_of_trls_are_those_losses(trainer):
    """At TRL's defaults, where alphapo is simpo without likelihood."""
    for name, block in trl_names.losses(trainer).items():
        batch, loss = Batch(prompt=3, branches=2 + (trainer == "TPO")), build_loss(block).loss
        changed = {"loss_type": "simpo", "cpo_alpha": 0.0} if name == "alphapo" else {"loss_type": name}
        theirs = batch.their_cpo if trainer == "CPO" else batch.their_tpo
        assert_equal(batch, batch.ours(loss), theirs(**changed))


def test_cpos_likelihood_by_sequence_weighs_answers_alike_where_trl_weighs_tokens():
    batch = Batch(prompt=3)
    gap = batch.ours(bound(cpo, beta=0.3)) - batch.their_cpo(beta=0.3)
    chosen = batch.sides()[0]
    by_token = -chosen.tokens.mean()
    by_sequence = -chosen.mean.mean()
    assert gap.item() == pytest.approx((by_sequence - by_token).item(), rel=1e-9)
    assert abs(gap.item()) > 1e-3


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_simpo_and_cpo_simpo(alpha, smoothing):
    batch = Batch(prompt=3)
    loss = with_nll(
        bound(simpo, beta=2.0, gamma=0.8, label_smoothing=smoothing), alpha=alpha, nll="batch_token"
    )
    theirs = batch.their_cpo(
        loss_type="simpo", beta=2.0, simpo_gamma=0.8, cpo_alpha=alpha, label_smoothing=smoothing
    )
    assert_equal(batch, batch.ours(loss), theirs)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("alpha", [0.25, 1.0, -0.5])
def test_alphapo(alpha, smoothing):
    batch = Batch(prompt=3)
    loss = bound(alphapo, beta=2.5, gamma=0.1, alpha=alpha, label_smoothing=smoothing)
    theirs = batch.their_cpo(
        loss_type="simpo", alpha=alpha, beta=2.5, simpo_gamma=0.1, cpo_alpha=0.0, label_smoothing=smoothing
    )
    assert_equal(batch, batch.ours(loss), theirs)


def test_alphapo_stays_finite_where_trl_overflows():
    """exp(-1000) is 0 in float32, and 0 to the power -0.25 infinite."""
    trainer = never_set_up(
        trl_cpo.CPOTrainer, alpha=0.25, beta=2.5, simpo_gamma=0.1, label_smoothing=0.0, loss_type="simpo"
    )
    unlikely, likely = torch.tensor([-1000.0]), torch.tensor([-1.0])
    assert not torch.isfinite(trainer.cpo_loss(unlikely, likely)[0]).all()
    sides = (SeqLogps(tokens=tokens, lengths=(1,)) for tokens in (unlikely, likely))
    assert torch.isfinite(alphapo(PairLogps(*sides)).loss).all()


@pytest.mark.parametrize("lam", [0.1, 1.0])
def test_orpo_after_a_prompt_of_one_token(lam):
    """TRL's likelihood covers the prompt, whose only token nothing predicts; its odds are in float32."""
    batch = Batch(prompt=1)
    assert_equal(batch, batch.ours(bound(orpo, lam=lam, nll="batch_token")), batch.their_orpo(lam))


def test_orpos_likelihood_is_that_of_the_answer_where_trl_adds_the_prompt():
    """Both differ by the mean over answer tokens against the mean over prompt and answer tokens."""
    batch = Batch(prompt=4)
    gap = batch.ours(bound(orpo, nll="batch_token")) - batch.their_orpo(0.1)
    costs = -batch.token_logps()[:NUM_PAIRS]
    of_answer, of_all = (mask[:NUM_PAIRS, 1:].bool() for mask in (batch.answer_mask, batch.attention_mask))
    expected = costs[of_answer].mean() - costs[of_all].mean()
    assert gap.item() == pytest.approx(expected.item(), abs=1e-6)  # odds in float32
    assert abs(gap.item()) > 1e-3


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_triple(alpha, smoothing):
    batch = Batch(prompt=3, branches=3 if alpha else 2)
    loss = bound(triple, beta=0.3, alpha=alpha, label_smoothing=smoothing)
    theirs = batch.their_tpo(beta=0.3, tpo_alpha=alpha, label_smoothing=smoothing)
    if not alpha:  # TRL drops the gold answers then; ours reads them and weighs them by zero
        gold = Batch(prompt=3, branches=3).sides()[2].detach()
        chosen, rejected = batch.sides()
        assert_equal(batch, loss(PairLogps(chosen, rejected, {"gold": gold})).loss.mean(), theirs)
        return
    assert_equal(batch, batch.ours(loss), theirs)


def test_triple_of_means():
    batch = Batch(prompt=3, branches=3)
    loss = bound(triple, beta=2.0, gamma=0.8, norm="mean")
    theirs = batch.their_tpo(loss_type="tpo-l", beta=2.0, tpo_l_gamma=0.8)
    assert_equal(batch, batch.ours(loss), theirs)


@pytest.mark.parametrize(("link", "norm"), [("hinge", "sum"), ("ipo", "mean")])
def test_links_of_triple(link, norm):
    batch = Batch(prompt=3, branches=3)
    ours = batch.ours(bound(triple, beta=0.3, link=link, norm=norm))
    assert_equal(batch, ours, batch.their_tpo(loss_type=link, beta=0.3))


def test_triples_likelihood_weighs_gold_answers_alike_where_trl_weighs_tokens():
    batch = Batch(prompt=3, branches=3, equal_gold=False)
    gap = batch.ours(bound(triple, beta=0.3)) - batch.their_tpo(beta=0.3)
    gold = batch.sides()[2]
    assert gap.item() == pytest.approx((gold.tokens.mean() - gold.mean.mean()).item(), rel=1e-9)
    assert abs(gap.item()) > 1e-3


def test_ipo_in_trls_cpo_trainer_is_ours_against_a_flat_reference():
    batch = Batch(prompt=3)
    chosen, rejected = batch.sides()
    flat = PairLogps(*(SeqLogps(torch.zeros_like(side.tokens), side.lengths) for side in (chosen, rejected)))
    ours = ipo(PairLogps(chosen, rejected), flat, beta=0.3).loss.mean()
    assert_equal(batch, ours, batch.their_cpo(loss_type="ipo", beta=0.3, cpo_alpha=0.0))
