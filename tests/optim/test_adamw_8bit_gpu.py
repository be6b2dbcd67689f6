"""AdamW in 8 bits on a GPU: moves nearly as AdamW does, keeps what the plan counts, and survives a stop."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prefopt.optim import (
    OptimSettings,
    kept,
    kept_bytes,
    load_state_tensors,
    make_optimizer,
    state_tensors,
    trainable,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
pytest.importorskip("bitsandbytes")

CUDA = torch.device("cuda")


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(128, 64), nn.Linear(64, 3)).to(CUDA)


def follow(module: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    """Take steps with gradients that do not depend on the weights."""
    for step in range(first, last):
        torch.manual_seed(step)
        for parameter in module.parameters():
            parameter.grad = torch.randn(parameter.shape).to(CUDA)
        optimizer.step()


def test_eight_bits_move_nearly_as_adamw() -> None:
    """Ten steps of at most 1e-2 each; 8 bits leave a few per cent of every moment."""
    ours, plain = model(), model()
    start = [parameter.detach().clone() for parameter in plain.parameters()]
    for module, name in ((ours, "adamw_8bit"), (plain, "adamw")):
        follow(
            module, make_optimizer(OptimSettings(optimizer=name, lr=1e-2, weight_decay=0.1), module), 0, 10
        )
    for found, expected, before in zip(ours.parameters(), plain.parameters(), start, strict=True):
        moved = (expected - before).norm()
        assert (found - expected).norm() < 0.1 * moved


def test_its_state_is_what_the_plan_counts() -> None:
    module = model()
    optimizer = make_optimizer(OptimSettings(optimizer="adamw_8bit", lr=1e-2), module)
    follow(module, optimizer, 0, 1)
    held = [v for each in optimizer.state.values() for v in each.values() if isinstance(v, torch.Tensor)]
    found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
    assert sum(found.values()) == kept_bytes("adamw_8bit", kept("adamw_8bit", module).values())


def test_its_state_put_back_continues_bit_for_bit() -> None:
    settings = OptimSettings(optimizer="adamw_8bit", lr=1e-2)
    first, second = model(), model()
    optimizer = make_optimizer(settings, first)
    follow(first, optimizer, 0, 3)
    flat = state_tensors(optimizer, trainable(first))
    second.load_state_dict(first.state_dict())
    other = make_optimizer(settings, second)
    load_state_tensors(other, trainable(second), flat, kept("adamw_8bit", second))
    follow(first, optimizer, 3, 6)
    follow(second, other, 3, 6)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
