"""Preference rows to measure on, real transcripts or text of the same lengths, and a tokenizer for them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from prefopt.types import Preference, TokenizedGroup

PAD, EOS = "<pad>", "<eos>"
TURN = "\n\nAssistant:"


@dataclass(frozen=True, slots=True)
class Rows:
    """Token ids of pairs, the tokenizer they come from, and a line that says what they are."""

    groups: list[TokenizedGroup]
    tokenizer_json: str
    source: str

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Build the tokenizer as transformers knows it."""
        make: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
        return make(tokenizer_object=Tokenizer.from_str(self.tokenizer_json), pad_token=PAD, eos_token=EOS)


def load_rows(path: Path | None, *, vocabulary: int, max_tokens: int, seed: int = 0) -> Rows:
    """Read or make pairs and tokenize them with a byte-level BPE trained on these very rows.

    Args:
        path: JSON lines (gz too) with whole ``chosen`` and ``rejected`` transcripts; None makes synthetic rows.
        vocabulary: size of the BPE.
        max_tokens: answers are cut so that prompt and answer have at most so many tokens.
        seed: of the synthetic rows.
    """
    texts = list(_transcripts(path)) if path else list(_synthetic(seed))
    tokenizer = _train_tokenizer([text for row in texts for text in row], vocabulary)
    ids = tokenizer.encode_batch([text for row in texts for text in row], add_special_tokens=False)
    end = tokenizer.token_to_id(EOS)
    groups: list[TokenizedGroup] = []
    for at in range(len(texts)):
        prompt, chosen, rejected = (encoding.ids for encoding in ids[3 * at : 3 * at + 3])
        room = max_tokens - len(prompt)
        if room > 0 and chosen != rejected:
            groups.append(_group(at, prompt, [[*chosen, end][:room], [*rejected, end][:room]]))
    what = (
        f"{path.parent.name}/{path.name}"
        if path
        else "synthetic words with the lengths of HH-RLHF (harmless)"
    )
    return Rows(groups, tokenizer.to_str(), what)


def _group(row: int, prompt: list[int], answers: Sequence[list[int]]) -> TokenizedGroup:
    return TokenizedGroup(
        prompts=(np.array(prompt, np.int32),),
        responses=tuple(np.array(answer, np.int32) for answer in answers),
        prompt_of=(0, 0),
        preferences=(Preference(0, 1),),
        row_id=row,
        origin=f"row {row + 1}",
    )


def _transcripts(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield prompt, chosen and rejected answer; rows whose sides have different prompts are left out."""
    open_text = gzip.open if path.suffix == ".gz" else open
    with open_text(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            prompt, chosen = _split(row["chosen"])
            other, rejected = _split(row["rejected"])
            if prompt == other and chosen and rejected:
                yield prompt, chosen, rejected


def _split(transcript: str) -> tuple[str, str]:
    at = transcript.rfind(TURN) + len(TURN)
    return transcript[:at], transcript[at:]


def _synthetic(seed: int, count: int = 2000) -> Iterator[tuple[str, str, str]]:
    """Yield random words whose token counts (1.2 a word) follow log-normals fitted to the real rows."""
    rng = np.random.default_rng(seed)
    words = np.array(["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), size=4)) for _ in range(6000)])

    def text(median: float, spread: float) -> str:
        return " ".join(
            rng.choice(words, size=max(1, round(median * np.exp(spread * rng.standard_normal()))))
        )

    for _ in range(count):
        yield text(79, 0.95) + TURN, " " + text(24, 0.9), " " + text(31, 0.9)


def _train_tokenizer(texts: Sequence[str], vocabulary: int) -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def tokenizer_of(pad: int, eos: int) -> str:
    """Return a tokenizer, as JSON, that knows these two ids and nothing else."""
    return str(Tokenizer(models.WordLevel({PAD: pad, EOS: eos}, unk_token=PAD)).to_str())


def shape_of(groups: Sequence[TokenizedGroup], pairs_per_step: int) -> dict[str, float]:
    """Say what the layouts make of these pairs, in this order.

    Returns:
        Medians of prompt and answers, and how many tokens pass through the trunk for every token of the
        prefix-shared layout: without sharing, and padded as chosen rows above rejected rows.
    """
    sizes = np.array([[len(g.prompts[0]), *(len(r) for r in g.responses)] for g in groups])
    prompt, chosen, rejected = sizes.T
    longest = prompt + np.maximum(chosen, rejected)
    cuts = range(0, len(groups), pairs_per_step)
    padded = sum(
        2 * len(longest[at : at + pairs_per_step]) * longest[at : at + pairs_per_step].max() for at in cuts
    )
    shared = (prompt + chosen + rejected).sum()
    return {
        "pairs": len(groups),
        "prompt_median": float(np.median(prompt)),
        "chosen_median": float(np.median(chosen)),
        "rejected_median": float(np.median(rejected)),
        "longest": int(longest.max()),
        "tokens_shared": int(shared),
        "padding_free_ratio": round(float((2 * prompt + chosen + rejected).sum() / shared), 3),
        "padded_ratio": round(float(padded / shared), 3),
    }
