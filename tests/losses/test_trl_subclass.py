"""Our losses inside a real subclass of TRL's DPOTrainer, against TRL's own losses, step by step.

The subclass overrides ``_compute_loss`` alone: TRL collates, runs the model and steps the optimizer.
"""

from __future__ import annotations

import pytest
import torch
from lanes import slow_but
from torch import Tensor

from prefopt.losses import Loss, bound, contract_of, dpo, functional, ipo, ld_dpo, wpo
from prefopt.types import PairLogps

trl = pytest.importorskip("trl", minversion="1.16")
datasets = pytest.importorskip("datasets")
tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")  # what TRL and transformers deprecate is not ours to fix

ROWS = [
    ("the cat", "sat on the mat and then it slept", "ran"),
    ("a dog ran", "under the tree", "on a mat slowly and then it slept"),
    ("the dog", "slept", "sat under a tree"),
    ("a cat sat", "on the mat then ran fast", "slowly"),
]
WORDS = sorted({word for row in ROWS for text in row for word in text.split()})
STEPS = 2


class OurTrainer(trl.DPOTrainer):
    """TRL's trainer with one of our losses in place of its own."""

    our_loss: Loss

    def _compute_loss(self, model, inputs, return_outputs):
        policy = self.pairs(model(**self.arguments(inputs)), inputs)
        with torch.no_grad():
            reference = self.pairs(self.ref_model(**self.arguments(inputs)), inputs)
        return self.our_loss(policy, reference).loss.mean()

    def arguments(self, inputs) -> dict[str, object]:
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        kept = {key: value for key, value in inputs.items() if key != "completion_mask"}
        return {**kept, "labels": labels, "use_cache": False, "fused_lm_head": True}

    def pairs(self, outputs, inputs) -> PairLogps:
        mask = inputs["completion_mask"][:, 1:]
        wants_p2 = "log_sum_p2" in contract_of(self.our_loss).policy_stats
        is_given = getattr(outputs, "log_sum_sq_probs", None) is not None
        stats = {"log_sum_p2": outputs.log_sum_sq_probs} if wants_p2 and is_given else {}
        return PairLogps.from_concatenated(outputs.log_probs, mask, **stats)


def tiny_model(seed: int):
    transformers.set_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS) + 3,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,  # large enough for margins and weights far from their start values
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return transformers.LlamaForCausalLM(config)


def tiny_tokenizer():
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", *WORDS])}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<pad>"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def losses_of(trainer_class, folder, our_loss: Loss | None = None, **settings) -> list[float]:
    """Train ``STEPS`` steps from the same start and return the loss of each."""
    args = trl.DPOConfig(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        seed=0,
        **settings,
    )
    rows = [dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in ROWS]
    trainer = trainer_class(
        model=tiny_model(0),
        ref_model=tiny_model(1),
        args=args,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
    )
    if our_loss is not None:
        trainer.our_loss = our_loss
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


CASES = {
    "dpo": (bound(dpo, beta=0.3), {"loss_type": ["sigmoid"], "beta": 0.3}),
    "ipo": (bound(ipo, beta=0.3), {"loss_type": ["ipo"], "beta": 0.3}),
    "ld_dpo": (bound(ld_dpo, beta=0.3, alpha=0.4), {"loss_type": ["sigmoid"], "beta": 0.3, "ld_alpha": 0.4}),
    "wpo": (
        bound(wpo, beta=0.3, max_weight=1e30),  # TRL does not cap the weight
        {"loss_type": ["sigmoid"], "beta": 0.3, "use_weighting": True},
    ),
}


@pytest.mark.parametrize(("our_loss", "theirs"), slow_but(("dpo",), CASES))
def test_step_losses_equal_trl(our_loss, theirs, tmp_path):
    """Two steps on four pairs, so the second loss has seen our gradient."""
    ours = losses_of(OurTrainer, tmp_path / "ours", our_loss, **theirs)
    expected = losses_of(trl.DPOTrainer, tmp_path / "theirs", **theirs)
    assert len(ours) == STEPS
    assert ours == pytest.approx(expected, abs=1e-5, rel=1e-5)  # float32; TRL logs full precision
    assert abs(expected[1] - expected[0]) > 1e-2


def test_the_plain_tensor_door_serves_a_trainer_that_holds_sums(tmp_path):
    """``functional.dpo_loss`` on sums gives the same two steps as TRL."""

    class SumTrainer(OurTrainer):
        def _compute_loss(self, model, inputs, return_outputs):
            chosen, rejected = self.sums(model, inputs)
            with torch.no_grad():
                reference = self.sums(self.ref_model, inputs)
            return functional.dpo_loss(chosen, rejected, *reference, beta=0.3).loss.mean()

        def sums(self, model, inputs) -> tuple[Tensor, Tensor]:
            chosen, rejected = model(**self.arguments(inputs)).log_probs.sum(dim=1).chunk(2)
            return chosen, rejected

    settings = {"loss_type": ["sigmoid"], "beta": 0.3}
    ours = losses_of(SumTrainer, tmp_path / "ours", **settings)
    assert ours == pytest.approx(
        losses_of(trl.DPOTrainer, tmp_path / "theirs", **settings), abs=1e-5, rel=1e-5
    )
