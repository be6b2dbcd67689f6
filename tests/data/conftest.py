"""Tokenizers small enough to train in a test, of the kinds that real models have."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

LINES = [
    "the quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "Human: what is the capital of France? Assistant: The capital of France is Paris.",
    "numbers 1 22 333 4444, a\nnew line, and some\n\nblank ones; don't we've they're",
    "good answers are short. bad answers are long, rude or wrong!  Two  spaces.",
    "héllo wörld, 你好 世界, emoji 🙂🙂 and \t tabs",
] * 4

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]

Maker = Callable[..., PreTrainedTokenizerFast]


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def _sentencepiece() -> Tokenizer:
    """A BPE without a splitter that writes blanks as ▁ and puts one before the text, as Llama 2 has it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<|endoftext|>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def _metaspace() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=[*SPECIAL, "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def _bytes_only() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=270,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["ab"], trainer)
    return tokenizer


KINDS = {
    "byte_level": _byte_level,
    "sentencepiece": _sentencepiece,
    "metaspace": _metaspace,
    "bytes": _bytes_only,
}


@pytest.fixture(scope="session")
def make_tokenizer() -> Maker:
    """Build a tokenizer: ``make_tokenizer(kind, template=…, adds_bos=…)``."""
    stored: dict[str, str] = {}

    def make(
        kind: str = "byte_level", *, template: str | None = CHATML, adds_bos: bool = False, **kwargs: Any
    ) -> PreTrainedTokenizerFast:
        if kind not in stored:
            stored[kind] = KINDS[kind]().to_str()
        backend = Tokenizer.from_str(stored[kind])
        backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
        if adds_bos:
            bos = "<|begin_of_text|>"
            backend.post_processor = processors.TemplateProcessing(
                single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
            )
        names = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "bos_token": "<|begin_of_text|>"}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **{**names, **kwargs})
        tokenizer.chat_template = template
        return tokenizer

    return make


@pytest.fixture(scope="session")
def chatml(make_tokenizer: Maker) -> PreTrainedTokenizerFast:
    """A byte-level BPE with a ChatML template."""
    return make_tokenizer()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Sequence[Any] | str | bytes], str]:
    """Write rows (as JSON lines), text or bytes to a file and return its path."""

    def write_file(name: str, content: Sequence[Any] | str | bytes) -> str:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        return str(path)

    return write_file
