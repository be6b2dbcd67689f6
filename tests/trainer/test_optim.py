"""The schedule by hand, and an optimizer state that survives its way through tensors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from prefopt.errors import ResumeError
from prefopt.trainer.optim import (
    OptimSettings,
    adamw,
    learning_rate,
    load_state_tensors,
    state_tensors,
    trainable,
)


def rates(schedule: str, warmup: float, steps: int = 10) -> list[float]:
    settings = OptimSettings(lr=1.0, schedule=schedule, warmup=warmup)
    return [learning_rate(settings, step, steps) for step in range(steps)]


def test_linear_with_warmup_by_hand() -> None:
    """Two warm-up steps of ten: 1/3, 2/3, then 1, 7/8 ... 1/8."""
    expected = [1 / 3, 2 / 3, *[1 - k / 8 for k in range(8)]]
    assert rates("linear", 0.2) == pytest.approx(expected)
    assert rates("linear", 2) == pytest.approx(expected)


def test_cosine_by_hand() -> None:
    """No warm-up, step 5 of 10: half of 1 + cos(pi / 2)."""
    values = rates("cosine", 0)
    assert values[0] == 1 and values[5] == pytest.approx(0.5)
    assert values[9] == pytest.approx(0.5 * (1 + math.cos(0.9 * math.pi)))


def test_constant_stays() -> None:
    assert rates("constant", 0) == [1.0] * 10


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    for step in range(count):
        torch.manual_seed(step)
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_state_put_back_continues_bit_for_bit() -> None:
    torch.manual_seed(1)
    first = nn.Linear(3, 2)
    optimizer = adamw(first, OptimSettings(lr=0.1, weight_decay=0.1))
    steps(first, optimizer, 3)
    flat = state_tensors(optimizer, trainable(first))
    assert set(flat) == {f"{p}/{f}" for p in ("weight", "bias") for f in ("exp_avg", "exp_avg_sq", "step")}
    second = nn.Linear(3, 2)
    second.load_state_dict(first.state_dict())
    other = adamw(second, OptimSettings(lr=0.1, weight_decay=0.1))
    load_state_tensors(other, trainable(second), flat)
    steps(first, optimizer, 3)
    steps(second, other, 3)
    assert torch.equal(first.weight, second.weight) and torch.equal(first.bias, second.bias)


def test_a_dropped_moment_is_noticed() -> None:
    model = nn.Linear(3, 2)
    optimizer = adamw(model, OptimSettings())
    steps(model, optimizer, 1)
    flat = state_tensors(optimizer, trainable(model))
    flat = {key: value for key, value in flat.items() if key != "bias/exp_avg"}
    with pytest.raises(ResumeError, match="parameter 'bias'"):
        load_state_tensors(adamw(model, OptimSettings()), trainable(model), flat)


def test_weight_decay_spares_vectors() -> None:
    groups = adamw(nn.Linear(3, 2), OptimSettings(weight_decay=0.1)).param_groups
    assert [(group["params"][0].dim(), group["weight_decay"]) for group in groups] == [(2, 0.1), (1, 0.0)]


def test_the_update_is_one_fused_kernel_per_list() -> None:
    """Fused AdamW keeps its step counter on the device, so that an update reads nothing back."""
    optimizer = adamw(nn.Linear(3, 2), OptimSettings())
    assert all(group["fused"] for group in optimizer.param_groups)
