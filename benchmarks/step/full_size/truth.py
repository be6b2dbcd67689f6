"""The loss and gradient that every contender is held to before it is timed, and how far off it may be."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.step.full_size.worker import clean_up
from benchmarks.step.task import Task
from prefopt.types import TokenizedGroup

ROUNDINGS = 8
"""Values of one layer that are rounded and add up: norms, projections, attention, both residual sums."""
SIGMAS = 3.0


def truth(task: Task) -> dict[str, Any]:
    """Return DPO's loss and the norm of its gradient on ``task.checked``, one pair at a time.

    In float32 from the very weights that contenders get, with transformers' own attention and all logits:
    nothing of it is ours but the weights.
    """
    said = _truth(task)
    return said | clean_up(task.device)


def _truth(task: Task) -> dict[str, float]:
    policy = task.make_model("sdpa").float()
    reference = policy if task.model.rank else task.make_other("sdpa").float()
    pairs = [
        (group.prompts[0], group.responses[pair.chosen], group.responses[pair.rejected])
        for group in task.checked
        for pair in group.preferences
    ]
    total = 0.0
    for prompt, *answers in pairs:
        ids = [torch.tensor([*prompt, *answer], device=task.device) for answer in answers]
        with torch.no_grad(), policy.disable_adapter() if task.model.rank else nullcontext():
            before = [_logp(reference, each, len(prompt)) for each in ids]
        after = [_logp(policy, each, len(prompt)) for each in ids]
        margin = (after[0] - before[0]) - (after[1] - before[1])
        loss = -F.logsigmoid(task.beta * margin) / len(pairs)
        torch.autograd.backward(loss)
        total += loss.item()
    grads = [p.grad for p in policy.parameters() if p.grad is not None]
    return {"loss": total, "grad_norm": torch.nn.utils.get_total_norm(grads).item()}


def _logp(model: Any, ids: Tensor, start: int) -> Tensor:
    logits = model(input_ids=ids[None], use_cache=False).logits[0, start - 1 : -1]
    total: Tensor = logits.log_softmax(-1).gather(-1, ids[start:, None]).sum()
    return total


def tolerances(task: Task) -> dict[str, float]:
    """Return how far loss and gradient norm may be off the truth.

    float32: 1e-4 and, relative, 1e-3; another order of sums leaves a tenth of that. bfloat16: a hidden state
    that is rounded to 2^-9 at ``ROUNDINGS`` places in each layer is off by e = 2^-9 sqrt(ROUNDINGS layers),
    so a logit, of standard deviation 0.02 sqrt(hidden) under random weights, by e times that; errors of the
    tokens of both answers under policy and reference add up at random, and the mean over pairs halves them
    by its root. The norm follows the loss's weights of the pairs, and every gradient is off by e itself.
    """
    if task.model.compute == torch.float32:
        return {"loss": 1e-4, "grad_norm": 1e-3}
    sizes = task.model.sizes
    relative = 2.0**-9 * (ROUNDINGS * sizes.layers) ** 0.5
    logit = relative * 0.02 * sizes.hidden**0.5
    pairs = sum(len(group.preferences) for group in task.checked)
    tokens = sum(len(answer) for group in task.checked for answer in group.responses)
    loss = SIGMAS * task.beta * logit * (2 * tokens) ** 0.5 / pairs
    return {"loss": loss, "grad_norm": loss + SIGMAS * relative}


def verdict(said: dict[str, Any], expected: dict[str, Any], allowed: dict[str, float]) -> dict[str, Any]:
    """Return how far a contender is off the truth, and in ``note`` what is wrong, if anything."""
    gaps = {
        "loss": abs(said["loss"] - expected["loss"]),
        "grad_norm": abs(said["grad_norm"] / expected["grad_norm"] - 1),
    }
    # this way round NaN is wrong, too
    wrong = [
        f"{name} is off by {gap:.2g} > {allowed[name]:.2g}"
        for name, gap in gaps.items()
        if not gap <= allowed[name]
    ]
    return {"gaps": gaps, "note": "wrong: " + " and ".join(wrong) if wrong else ""}


def checked_rows(groups: Sequence[TokenizedGroup], count: int, longest: int) -> tuple[TokenizedGroup, ...]:
    """Return the first rows, cut to half of ``longest`` tokens for the prompt and a quarter for every answer."""
    return tuple(
        TokenizedGroup(
            prompts=(group.prompts[0][: longest // 2],),
            responses=tuple(response[: longest // 4] for response in group.responses),
            prompt_of=group.prompt_of,
            preferences=group.preferences,
            row_id=group.row_id,
            origin=f"checked {group.origin}",
        )
        for group in groups[:count]
    )
