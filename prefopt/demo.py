"""The embedded default: a tiny model, its tokenizer and a preference task, all made in code.

``builtin:tiny`` stands where a recipe wants a model, ``builtin:sort`` where it wants data; neither
needs a network or a file.

The task is to sort letters. As in data from people, the preferred answer of a pair is only the
better one, not always a right one: the longer the list, the more often even the chosen answer
swaps its last two letters. Supervised training on chosen answers learns that flaw with the rest.
The pairs order right before flawed before worse, and a preference loss can learn that order.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from string import ascii_lowercase
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prefopt.errors import DataError, ModelError

PREFIX = "builtin:"
MODELS = ("builtin:tiny",)
TASKS = ("builtin:sort",)
SPLITS = {"train": 8192, "test": 256}
"""Rows of each split; the two share no prompt, not even with its letters in another order."""

END, PAD = "<|end|>", "<|pad|>"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)

ASK = "sort "
"""What a prompt says before the letters."""
CARELESS = {4: 0.15, 5: 0.35, 6: 0.6, 7: 0.7}
"""How often the better answer of a pair is a flawed one, by the number of letters to sort."""
SLIPS = 0.05
"""How often a rejected answer lost one letter, and how often it repeats one."""

Row = dict[str, Any]


def is_builtin(path: str) -> bool:
    """Tell whether a path of a recipe names something made in code."""
    return path.startswith(PREFIX)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Make the tokenizer of ``builtin:tiny``: one token per byte of UTF-8, and a chat template."""
    specials = [PAD, END, "<|system|>", "<|user|>", "<|assistant|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(specials + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in specials])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=specials[2:],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )


def build_model(path: str = "builtin:tiny", seed: int = 0) -> LlamaForCausalLM:
    """Make the model of ``builtin:tiny`` with random weights that depend on ``seed`` alone.

    Raises:
        ModelError: ``path`` is another built-in name.
    """
    if path not in MODELS:
        raise ModelError(f"model.path: there is no '{path}'. Built-in models: {', '.join(MODELS)}.")
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        # so small a model learns several times faster from weights larger than the usual 0.02
        initializer_range=0.06,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def rows(path: str, split: str = "train", seed: int = 0) -> list[Row]:
    """Make the rows of a built-in task: message lists under ``prompt``, ``chosen`` and ``rejected``.

    Args:
        path: ``builtin:sort``.
        split: ``train`` or ``test``; their prompts are disjoint for every seed.
        seed: of the prompts of ``train`` and of the answers of both.

    Raises:
        DataError: there is no such task or split.
    """
    if path not in TASKS:
        raise DataError(f"data.path: there is no '{path}'. Built-in tasks: {', '.join(TASKS)}.")
    if split not in SPLITS:
        raise DataError(f"data.split: {path} has no split '{split}'. It has: {', '.join(SPLITS)}.")
    held_out: set[frozenset[str]] = set()
    # the held-out prompts never depend on the seed, so that runs with different seeds compare
    prompts = _draw_prompts(SPLITS["test"], random.Random("test"), held_out, is_unique=True)
    if split == "train":
        prompts = _draw_prompts(SPLITS["train"], random.Random(f"train {seed}"), held_out, is_unique=False)
    answers = random.Random(f"answers {split} {seed}")
    return [_row(letters, answers) for letters in prompts]


def right_answer(prompt: str) -> str:
    """Return the answer that a prompt of ``builtin:sort`` asks for."""
    return "".join(sorted(prompt.removeprefix(ASK)))


def is_correct(prompt: str, answer: str) -> bool:
    """Tell whether ``answer`` is the one that ``prompt`` asks for."""
    return answer == right_answer(prompt)


@torch.no_grad()
def greedy_answers(model: Any, tokenizer: Any, prompts: Sequence[list[Row]], max_tokens: int) -> list[str]:
    """Answer every prompt (a message list) with the likeliest next tokens, all in one batch.

    Args:
        model: a causal LM that can ``generate``.
        tokenizer: its tokenizer, with a chat template.
        prompts: message lists.
        max_tokens: longest answer, in tokens.
    """
    batch = tokenizer.apply_chat_template(
        prompts,
        add_generation_prompt=True,
        tokenizer_kwargs={"padding_side": "left"},
        padding=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids, mask = batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device)
    output = model.generate(ids, attention_mask=mask, max_new_tokens=max_tokens, do_sample=False)
    return list(tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True))


def _draw_prompts(
    count: int, rng: random.Random, held_out: set[frozenset[str]], *, is_unique: bool
) -> list[str]:
    """Draw letters to sort, none of them sorted already; unique ones are added to ``held_out``."""
    drawn: list[str] = []
    while len(drawn) < count:
        letters = rng.sample(ascii_lowercase, rng.choice(list(CARELESS)))
        key = frozenset(letters)
        if key in held_out or letters == sorted(letters):
            continue
        if is_unique:
            held_out.add(key)
        drawn.append("".join(letters))
    return drawn


def _row(letters: str, rng: random.Random) -> Row:
    """Pair a better with a worse answer to one prompt."""
    num_letters = len(letters)
    right = "".join(sorted(letters))
    careless = _swap(right, num_letters - 2)
    better = careless if rng.random() < CARELESS[num_letters] else right
    kind = rng.random()
    at = rng.randrange(num_letters)
    if kind < SLIPS:
        worse = better[:at] + better[at + 1 :]
    elif kind < 2 * SLIPS:
        worse = better[:at] + better[at] + better[at:]
    elif better == right:
        worse = careless
    else:
        worse = _swap(careless, rng.randrange(num_letters - 2))
    return {
        "prompt": [{"role": "user", "content": ASK + letters}],
        "chosen": [{"role": "assistant", "content": better}],
        "rejected": [{"role": "assistant", "content": worse}],
    }


def _swap(text: str, at: int) -> str:
    """Exchange the letters at ``at`` and the place after it."""
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
