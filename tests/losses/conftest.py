"""Pairs and answers for the tests of losses, written as plain lists of per-token log-probs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

from prefopt.types import ListLogps, PairLogps, SeqLogps

Tokens = Sequence[Sequence[float]]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def answers() -> Callable[..., SeqLogps]:
    """Build answers in float64: one list of log-probs for each, stats likewise."""

    def build(tokens: Tokens, **stats: Tokens) -> SeqLogps:
        return SeqLogps.from_ragged(
            [torch.tensor(row, dtype=torch.float64) for row in tokens],
            **{k: [torch.tensor(row, dtype=torch.float64) for row in rows] for k, rows in stats.items()},
        )

    return build


@pytest.fixture
def pairs(answers: Callable[..., SeqLogps]) -> Callable[..., PairLogps]:
    """Build pairs in float64 from the chosen and the rejected answers' log-probs."""

    def build(chosen: Tokens, rejected: Tokens) -> PairLogps:
        return PairLogps(chosen=answers(chosen), rejected=answers(rejected))

    return build


@pytest.fixture
def up_and_down(pairs: Callable[..., PairLogps]) -> tuple[PairLogps, PairLogps]:
    """Build one pair under policy and reference: log-ratios +1 over two tokens and -1 over one, so D = 2."""
    return pairs([[-1.0, -2.0]], [[-5.0]]), pairs([[-2.0, -2.0]], [[-4.0]])


@pytest.fixture
def lists(answers: Callable[..., SeqLogps]) -> Callable[..., ListLogps]:
    """Build groups in float64: a list of answers for each, every answer a list of log-probs."""

    def build(*groups: Tokens) -> ListLogps:
        return ListLogps(answers([row for group in groups for row in group]), tuple(map(len, groups)))

    return build
