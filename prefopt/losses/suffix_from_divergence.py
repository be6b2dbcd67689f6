"""Count a pair's tokens only from where its two answers part."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from prefopt.losses._compose import Given, admit, compose, picklable, union
from prefopt.losses._contract import Loss, signature_of
from prefopt.losses._terms import places, reweight
from prefopt.ragged import on_device
from prefopt.types import LossOutput, PairLogps, Range, SeqLogps, Stats


@picklable
def suffix_from_divergence(loss: Loss, *, length_penalty: Annotated[float, Range(ge=0)] = 0.0) -> Loss:
    """Add up a pair's log-probs from the first token in which its answers differ.

    For siblings of a search tree or answers with an edited ending. What the two share cancels in the margin
    of a loss on log-ratios anyway, so on ``dpo`` alone this changes the rewards and, with a
    ``length_penalty``, the margin; losses that pay each answer by itself (``nca_pair``, ``bco_pair``,
    ``apo_zero``) no longer pay for the shared part. Replaces ``total`` and, where ``loss`` reads it, the
    divergence; lengths, means and likelihood terms stay what they are.

    When:
        each row has answers that begin alike, as the steps of a solution do

    Args:
        loss: a loss over pairs.
        length_penalty: divide each answer's sum by its number of counted tokens to this power; 0 leaves sums,
            1 makes them means.

    Returns:
        A loss over the same pairs, which asks for the stat ``token_id``. An answer of which the other is a
        continuation has nothing left and sums to 0.

    Formula:
        t = first place where the two answers' tokens differ, n = tokens from t on, for each answer
        S = (sum of log-probs from t on) / n^length_penalty

    Raises:
        RecipeError: ``loss`` is not over pairs, reads tokens that this would not reach, already sums them
            anew, or a setting is illegal.

    Source:
        Xie, Goyal, Zheng, Kan, Lillicrap, Kawaguchi and Shieh, "Monte Carlo Tree Search Boosts Reasoning via
        Iterative Preference Learning", 2024, arXiv 2405.00451. As in the authors' code the first differing
        token counts.
    """
    penalty = admit(suffix_from_divergence, loss, length_penalty=length_penalty)["length_penalty"]
    signature = signature_of(loss)

    def pay(given: Given) -> LossOutput:
        policy: PairLogps = given["policy"]
        start = _first_difference(policy.chosen, policy.rejected)
        chosen, rejected = (_weights(side, start, penalty) for side in (policy.chosen, policy.rejected))

        def cut(pair: PairLogps) -> PairLogps:
            return replace(
                pair, chosen=reweight(pair.chosen, chosen), rejected=reweight(pair.rejected, rejected)
            )

        return loss(**{k: cut(v) if isinstance(v, PairLogps) else v for k, v in given.items()})

    marks = [Stats("token_id")]
    return compose(
        suffix_from_divergence, loss, union("suffix_from_divergence", [signature], marks=marks), pay
    )


def _first_difference(one: SeqLogps, other: SeqLogps) -> Tensor:
    """Return at which token the answers of each pair part, int64 [P]; the shorter's length if they do not."""
    device = one.tokens.device
    shared = np.minimum(one.lengths, other.lengths).astype(np.int64)
    at = places(shared, device)
    ids = []
    for side in (one, other):
        lengths = np.asarray(side.lengths, dtype=np.int64)
        start = on_device(torch.from_numpy(np.repeat(np.cumsum(lengths) - lengths, shared)), device)
        ids.append(side.stats["token_id"].index_select(0, start + at))
    end = on_device(torch.from_numpy(np.repeat(shared, shared)), device)
    # places are exact in float32 up to 16 million, and a reduction takes no integers
    parting = torch.where(ids[0] != ids[1], at, end).float()
    counts = on_device(torch.from_numpy(shared), device)
    return torch.segment_reduce(parting, "min", lengths=counts, unsafe=True).long()


def _weights(answers: SeqLogps, start: Tensor, penalty: float) -> Tensor:
    """Return 0 before an answer's ``start`` [P] and 1 / n^penalty from there on, [M]."""
    answer = answers.sequence_of
    is_counted = places(answers.lengths, answers.tokens.device) >= start[answer]
    counted = is_counted.to(answers.tokens.dtype)
    if penalty == 0.0:
        return counted
    return counted * (answers.length - start).clamp(min=1).pow(-penalty)[answer]
