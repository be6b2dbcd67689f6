"""A small model and small data that the tests of the loop share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from math import nan
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from prefopt.assemble.loss import BoundLoss
from prefopt.data.packs.plan import Plan
from prefopt.data.tokens.table import GroupTable
from prefopt.policy import Policy
from prefopt.reference import FrozenReference
from prefopt.trainer.weighting import TokenMasks
from prefopt.types import LEARNED_MASKS, Preference, TokenizedGroup

VOCABULARY = 61


def llama(seed: int = 0, dtype: torch.dtype = torch.float64) -> LlamaForCausalLM:
    """Build a two-layer Llama with grouped key/value heads."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,  # large enough for log-probs that differ between tokens
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).to(dtype)
    if dtype == torch.float64:
        for module in model.modules():
            if isinstance(module, LlamaRMSNorm):
                module.__class__ = ExactNorm
    return model


class ExactNorm(LlamaRMSNorm):
    """Normalise in the input's own dtype; transformers rounds to float32 in between, which hides 1e-10."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * hidden * scale


def groups(count: int, seed: int = 0, answers: int = 2) -> list[TokenizedGroup]:
    """Draw groups of one prompt and ``answers`` responses; the first is preferred to every other."""
    rng = np.random.default_rng(seed)

    def ids(low: int, high: int) -> np.ndarray:
        return rng.integers(1, VOCABULARY, size=rng.integers(low, high)).astype(np.int32)

    return [
        TokenizedGroup(
            prompts=(ids(2, 14),),
            responses=tuple(ids(1, 9) for _ in range(answers)),
            prompt_of=(0,) * answers,
            preferences=tuple(Preference(0, k) for k in range(1, answers)),
            row_id=row,
            origin=f"toy.jsonl:{row + 1}",
        )
        for row in range(count)
    ]


def scored_groups(count: int, seed: int = 0) -> list[TokenizedGroup]:
    """Draw groups of two to five answers with a score each, the first the best."""
    sizes = np.random.default_rng(seed).integers(2, 6, size=count)
    drawn = [groups(count, seed, answers=int(size))[row] for row, size in enumerate(sizes)]
    return [replace(group, scores=tuple(np.linspace(1, 0, len(group.responses)).tolist())) for group in drawn]


def table(count: int, seed: int = 0, answers: int = 2) -> GroupTable:
    """Lay ``groups`` out in a table."""
    return GroupTable.from_groups(groups(count, seed, answers))


def plan(
    data: GroupTable, *, budget: int = 10_000, world: int = 1, per_step: int = 8, unit: str = "pairs"
) -> Plan:
    """Plan ``data`` with ``per_step`` units in a step."""
    return Plan(data.sizes(True), units_per_step=per_step, tokens_per_batch=budget, unit=unit, world=world)


def policy(seed: int = 0, dtype: torch.dtype = torch.float64) -> Policy:
    """Wrap the small Llama as a policy."""
    return Policy(llama(seed, dtype))


def reference(seed: int = 0, dtype: torch.dtype = torch.float64) -> FrozenReference:
    """Freeze another small Llama; with the policy's seed it is the start of training."""
    return FrozenReference(policy(seed, dtype), is_start=seed == 0)


WORDS = [f"w{i}" for i in range(VOCABULARY - 4)]
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}<end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Build a word-level tokenizer with a chat template."""
    names = ["<end>", "<user>", "<assistant>", "<unk>", *WORDS]
    core = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens([AddedToken(name, special=True) for name in names[:4]])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<end>",
        pad_token="<end>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = TEMPLATE
    return fast


def save_model(folder: Path, seed: int = 0, dropout: float = 0.0) -> Path:
    """Write the small Llama and its tokenizer in Hugging Face form."""
    model = llama(seed, torch.float32)
    model.config.attention_dropout = dropout
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def save_rows(path: Path, count: int, seed: int = 0) -> Path:
    """Write ``count`` message rows with random words."""
    rng = np.random.default_rng(seed)

    def text(low: int, high: int) -> str:
        return " ".join(rng.choice(WORDS, size=rng.integers(low, high)))

    with path.open("w") as file:
        for _ in range(count):
            row = {
                "prompt": [{"role": "user", "content": text(2, 9)}],
                "chosen": [{"role": "assistant", "content": text(1, 8)}],
                "rejected": [{"role": "assistant", "content": text(8, 12)}],
            }
            file.write(json.dumps(row) + "\n")
    return path


def recipe(folder: Path, **changes: str) -> list[str]:
    """Write model, rows and a recipe into ``folder`` and return the arguments of ``prefopt train``.

    ``changes`` are overrides; a double underscore stands for a dot. AdamW's eps is of the size of small
    gradients, so that no step turns the rounding of one near zero into a whole learning rate.
    """
    if not (folder / "recipe.yaml").exists():
        save_model(folder / "model")
        save_rows(folder / "rows.jsonl", 40)
        (folder / "recipe.yaml").write_text(
            f"output: {folder / 'run'}\n"
            f"model: {{path: {folder / 'model'}}}\n"
            f"data: {{path: {folder / 'rows.jsonl'}}}\n"
            "loss: {name: dpo, beta: 0.1}\n"
            "batch: {pairs_per_step: 8, tokens_per_batch: 120, max_tokens: 64}\n"
            "optim: {lr: 1.0e-3, warmup: 0.2, eps: 1.0e-4}\n"
            "train: {steps: 6, save_every: 2, keep: 2}\n"
        )
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    return [str(folder / "recipe.yaml"), *overrides]


def masks(loss: BoundLoss) -> TokenMasks | None:
    """Build what learns the token weights of ``loss`` from the small Llama's states, without dropout."""
    if not set(LEARNED_MASKS) & set(loss.contract.row_stats):
        return None
    torch.manual_seed(0)
    return TokenMasks(2, 16, loss.contract.row_stats, dropout=0.0).double()


def group(row: int, lengths: Sequence[int], roles: Sequence[str], **fields: object) -> TokenizedGroup:
    """Build a group whose response of n tokens repeats the token n; ``fields`` are others of the group."""
    given: dict[str, object] = {
        "prompts": (np.array([9], np.int32),),
        "responses": tuple(np.full(length, length, np.int32) for length in lengths),
        "prompt_of": (0,) * len(lengths),
        "preferences": (),
        "row_id": row,
        "origin": f"f:{row}",
        "roles": tuple(roles),
    }
    return TokenizedGroup(**(given | fields))  # type: ignore[arg-type]


def gold_groups() -> list[TokenizedGroup]:
    """Return two rows of three and two answers with a gold text each, in awkward places."""
    return [
        group(
            1,
            [2, 3, 1, 4],
            ["answer", "gold", "answer", "answer"],
            preferences=(Preference(0, 2, 2.0), Preference(0, 3, 2.0)),
            scores=(5.0, nan, 1.0, 2.0),
            prompt_embedding=np.array([1.0, 0.0], np.float32),
        ),
        group(
            2,
            [5, 6, 7],
            ["gold", "answer", "answer"],
            preferences=(Preference(2, 1, 0.5),),
            scores=(nan, 3.0, 4.0),
            prompt_embedding=np.array([0.0, 1.0], np.float32),
        ),
    ]
