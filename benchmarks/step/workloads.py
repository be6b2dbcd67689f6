"""Workloads of known lengths and random token ids: uniform shapes, data sets' length distributions, K answers.

Lengths are log-normal around published medians. They are quantiles at equal steps, shuffled, and not draws:
the medians of a few dozen rows are then those asked for, in every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, median

import numpy as np
import numpy.typing as npt

from benchmarks.step.flops import Row
from prefopt.types import Preference, TokenizedGroup

Ints = npt.NDArray[np.int64]

FIRST_ID = 8
"""Smaller ids are left to padding and end of sequence."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The lengths of prompts and answers, in tokens.

    Args:
        name: in tables.
        prompt: median of the prompts.
        answers: median of each answer; pairs are (0, 1), (2, 3) and so on, the even one preferred.
        prompt_spread: standard deviation of the prompt's logarithm; 0 for equal lengths.
        answer_spread: the same of every answer.
        pairs_per_step: in one optimizer step.
        longest: most tokens of a prompt with one answer; beyond it the answer is cut, then the prompt.
        origin: where the numbers come from.
    """

    name: str
    prompt: int
    answers: tuple[int, ...]
    prompt_spread: float = 0.0
    answer_spread: float = 0.0
    pairs_per_step: int = 16
    longest: int = 1 << 30
    origin: str = "uniform"

    @property
    def is_uniform(self) -> bool:
        return self.prompt_spread == self.answer_spread == 0.0

    @property
    def pairs_per_row(self) -> int:
        return len(self.answers) // 2

    def rows(self, count: int, seed: int = 0) -> list[Row]:
        """Return the lengths of ``count`` rows, the same for the same arguments."""
        rng = np.random.default_rng(seed)
        prompts = np.minimum(
            _quantiles(self.prompt, self.prompt_spread, count, rng), max(1, self.longest * 3 // 4)
        )
        columns = [_quantiles(middle, self.answer_spread, count, rng) for middle in self.answers]
        answers = [np.minimum(column, self.longest - prompts) for column in columns]
        return [(int(prompts[at]), tuple(int(column[at]) for column in answers)) for at in range(count)]

    def groups(self, count: int, vocab: int, seed: int = 0) -> list[TokenizedGroup]:
        """Return ``count`` rows of random token ids in [FIRST_ID, vocab)."""
        rng = np.random.default_rng([seed, 1])
        pairs = tuple(Preference(2 * at, 2 * at + 1) for at in range(self.pairs_per_row))

        def ids(length: int) -> npt.NDArray[np.int32]:
            return rng.integers(FIRST_ID, vocab, size=length, dtype=np.int32)

        return [
            TokenizedGroup(
                prompts=(ids(prompt),),
                responses=tuple(ids(length) for length in answers),
                prompt_of=(0,) * len(answers),
                preferences=pairs,
                row_id=at,
                origin=f"row {at + 1}",
            )
            for at, (prompt, answers) in enumerate(self.rows(count, seed))
        ]


def _quantiles(middle: int, spread: float, count: int, rng: np.random.Generator) -> Ints:
    """Return ``count`` lengths at equal steps of the log-normal's distribution, in random order."""
    if spread == 0.0:
        return np.full(count, middle, np.int64)
    normal = NormalDist(0.0, spread)
    at = np.array([normal.inv_cdf((i + 0.5) / count) for i in range(count)])
    lengths: Ints = np.maximum(1, np.round(middle * np.exp(rng.permutation(at)))).astype(np.int64)
    return lengths


def like(
    name: str, length: int, ratio: float, prompt_spread: float, answer_spread: float, pairs_per_step: int
) -> Workload:
    """Return a workload like a data set of which median length and median prompt : answer ratio are published.

    The median of a sum of two log-normals lies above the sum of their medians, so both are scaled down.

    Args:
        name: of the data set.
        length: median tokens of a prompt with one answer.
        ratio: tokens of a prompt over tokens of one answer.
        prompt_spread: not published; see ``Workload``.
        answer_spread: not published.
        pairs_per_step: in one optimizer step.

    Source: Wang and Hegde, arXiv 2410.20305, the table of data sets, for lengths and ratios.
    """
    answer = length / (1 + ratio)
    drafted = Workload(name, round(length - answer), (round(answer),) * 2, prompt_spread, answer_spread)
    scale = length / describe(drafted.rows(2000))["length_median"]
    return Workload(
        f"like {name}",
        round(scale * (length - answer)),
        (round(scale * answer),) * 2,
        prompt_spread,
        answer_spread,
        pairs_per_step,
        longest=4096,
        origin=f"median {length} tokens, prompt : answer {ratio} as published; log-normal, spreads "
        f"{prompt_spread} and {answer_spread} assumed",
    )


def uniform(prompt: int, chosen: int, rejected: int, pairs_per_step: int) -> Workload:
    """Return a workload of equal lengths."""
    return Workload(
        f"{prompt} + {chosen} / {rejected}", prompt, (chosen, rejected), pairs_per_step=pairs_per_step
    )


def rows_of(groups: Sequence[TokenizedGroup]) -> list[Row]:
    """Return the lengths of groups of one prompt each."""
    return [(len(g.prompts[0]), tuple(len(r) for r in g.responses)) for g in groups]


def describe(rows: Sequence[Row]) -> dict[str, float]:
    """Return the medians that were realised, and the ratio of prompt to answer."""
    answers = [own for _, owns in rows for own in owns]
    prompt, answer = median(prompt for prompt, _ in rows), median(answers)
    return {
        "rows": len(rows),
        "prompt_median": prompt,
        "answer_median": answer,
        "length_median": median(prompt + own for prompt, owns in rows for own in owns),
        "prompt_to_answer": round(prompt / answer, 3),
        "longest": max(prompt + max(owns) for prompt, owns in rows),
    }


WORKLOADS = {
    workload.name: workload
    for workload in (
        uniform(128, 256, 256, 16),
        uniform(512, 256, 256, 8),
        uniform(2048, 512, 512, 4),
        uniform(8192, 512, 512, 2),
        like("UltraFeedback", 409, 0.42, 0.9, 0.6, 16),
        like("HH", 186, 2.15, 0.95, 0.9, 32),
        like("MetaMath", 872, 3.91, 0.25, 0.5, 8),
        like("Tulu-HelpSteer", 775, 6.34, 0.8, 0.6, 8),
        Workload("8 answers on 2048", 2048, (512,) * 8, pairs_per_step=8),
    )
}
"""What is timed on a GPU, by name. A step fills the chip: some 8000 tokens or more in the shared layout."""
