"""Leaving tokens of weight 0 out of the scoring equals scoring all and counting them at 0, in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import toy
from torch import Tensor

from prefopt.data.packs.pack import pack
from prefopt.losses import bound, dpo, nca_pair, tdpo, token_weighted
from prefopt.losses._contract import Loss
from prefopt.structures.pairs import PAIRS
from prefopt.trainer.inputs import batch_stats
from prefopt.types import TokenizedGroup

GROUPS = toy.groups(4, seed=4, answers=3)


def weights() -> list[tuple[np.ndarray, ...]]:
    """Draw 0, 0.5, 1 or 2 for every token, the last of each answer never 0."""
    rng = np.random.default_rng(0)
    found = []
    for group in GROUPS:
        drawn = [rng.choice([0.0, 0.5, 1.0, 2.0], size=len(r)).astype(np.float32) for r in group.responses]
        for part in drawn:
            part[-1] = max(part[-1], 0.5)
        found.append(tuple(drawn))
    return found


WEIGHTED = [replace(group, token_weights=own) for group, own in zip(GROUPS, weights(), strict=True)]
COUNTS = torch.from_numpy(np.concatenate([part for own in weights() for part in own]))  # of all tokens


def loss_and_gradients(
    loss: Loss, groups: list[TokenizedGroup], counts: Tensor | None, *, share_prompts: bool = True
) -> tuple[Tensor, dict[str, Tensor]]:
    """Pay for one pack; ``counts`` stand in for the weights of the data."""
    policy, reference = toy.policy(), toy.reference(seed=1)
    batch = pack(groups, share_prompts=share_prompts)
    other, rows = reference.with_rows(batch)
    logps = policy(batch, stats=("kl",), against=rows)
    given = batch_stats(("weight",), batch) if counts is None else {"weight": counts}
    units = PAIRS.arrange(batch, logps.with_stats(given))
    paid = loss(units, PAIRS.arrange(batch, other)).loss
    paid.sum().backward()
    return paid.detach(), {n: p.grad for n, p in policy.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(
    "base", [dpo, nca_pair, bound(tdpo, variant="tdpo1")], ids=["dpo", "nca_pair", "tdpo"]
)
def test_left_out_equals_counted_at_zero(base: Loss, share: bool) -> None:
    """Loss of every pair and every parameter's gradient; 1e-10 is float64 rounding of sums in another order."""
    loss = token_weighted(base)
    kept, kept_grads = loss_and_gradients(loss, WEIGHTED, None, share_prompts=share)
    whole, whole_grads = loss_and_gradients(loss, GROUPS, COUNTS)
    torch.testing.assert_close(kept, whole, rtol=1e-10, atol=1e-12)
    assert kept_grads.keys() == whole_grads.keys()
    for name, grad in whole_grads.items():
        scale = float(grad.abs().max())
        torch.testing.assert_close(kept_grads[name], grad, rtol=1e-10, atol=1e-10 * scale, msg=name)


def test_what_is_left_out_is_still_read() -> None:
    """Another token at a place of weight 0 changes the log-probs behind it in its answer, and no others."""
    policy = toy.policy()
    group = replace(
        GROUPS[0],
        responses=(np.array([5, 6, 7], np.int32), np.array([8, 9], np.int32)),
        prompt_of=(0, 0),
        preferences=GROUPS[0].preferences[:1],
        token_weights=(np.array([1, 0, 1], np.float32), np.ones(2, np.float32)),
    )
    other = replace(group, responses=(np.array([5, 40, 7], np.int32), group.responses[1]))
    with torch.no_grad():
        one, two = policy(pack([group])).tokens, policy(pack([other])).tokens
    assert len(one) == 4
    assert (one != two).tolist() == [False, True, False, False]
