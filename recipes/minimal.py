"""DPO in plain Python, no recipe: a tiny model, three rows, ten steps. Run `python recipes/minimal.py`."""

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prefopt import FrozenReference, OptimSettings, Plan, PlannedSteps, Policy, Trainer, group_of
from prefopt.losses import bound, dpo

ROWS = [  # prompt, chosen, rejected; your own rows go here
    ("the sky is", "blue today", "green and loud"),
    ("two plus two is", "four", "five or six"),
    ("the cat sat on the", "mat", "idea of a mat"),
]


def main() -> None:
    """Build, train, save."""
    # 1. A causal language model and its tokenizer. Any Hugging Face model will do.
    words = sorted({word for row in ROWS for text in row for word in text.split()})
    vocabulary = {word: index for index, word in enumerate(["<eos>", *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    model = LlamaForCausalLM(config)
    start = LlamaForCausalLM(config)
    start.load_state_dict(model.state_dict())

    # 2. Token ids: a group is one prompt with its answers, the preferred one first.
    def ids(text: str) -> list[int]:
        return tokenizer(text).input_ids

    end = tokenizer.eos_token_id
    groups = [group_of(ids(prompt), [[*ids(good), end], [*ids(bad), end]]) for prompt, good, bad in ROWS]

    # 3. Train: each prompt is computed once for its two answers.
    plan = Plan.of(groups, units_per_step=3, tokens_per_batch=256)
    trainer = Trainer(
        Policy(model),
        bound(dpo, beta=0.1),
        PlannedSteps(plan, groups),
        num_steps=10,
        reference=FrozenReference(Policy(start), is_start=True),
        optim=OptimSettings(lr=1e-3),
    )
    for step in trainer:
        means = step.means()
        print(f"step {step.index + 1}: loss {means['loss']:.4f}, margin {means['reward/margin']:.4f}")
    model.save_pretrained("runs/minimal")


if __name__ == "__main__":
    main()
