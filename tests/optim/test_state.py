"""An optimizer's state survives its way through tensors, and that of another one is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from safetensors.torch import load_file
from torch import nn

from prefopt.assemble.loss import build_loss
from prefopt.data.packs.steps import PlannedSteps
from prefopt.errors import RecipeError, ResumeError
from prefopt.optim import (
    OPTIMIZERS,
    OptimSettings,
    kept,
    load_state_tensors,
    make_optimizer,
    state_tensors,
    trainable,
)
from prefopt.trainer import Trainer
from prefopt.trainer.state import restore, state_files, write_files

ON_CPU = [name for name, kind in OPTIMIZERS.items() if kind.refuse(torch.device("cpu"), False) is None]


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    for step in range(count):
        torch.manual_seed(step)
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", ON_CPU)
def test_state_put_back_continues_bit_for_bit(name: str) -> None:
    settings = OptimSettings(optimizer=name, lr=0.1, weight_decay=0.1)
    torch.manual_seed(1)
    first = nn.Linear(3, 2)
    optimizer = make_optimizer(settings, first)
    steps(first, optimizer, 3)
    flat = state_tensors(optimizer, trainable(first))
    states = kept(name, first)
    assert set(flat) == {f"{p}/{f}" for p in ("weight", "bias") for f in states[p]}
    second = nn.Linear(3, 2)
    second.load_state_dict(first.state_dict())
    other = make_optimizer(settings, second)
    load_state_tensors(other, trainable(second), flat, states)
    steps(first, optimizer, 3)
    steps(second, other, 3)
    assert torch.equal(first.weight, second.weight) and torch.equal(first.bias, second.bias)


def test_a_dropped_moment_is_noticed() -> None:
    model = nn.Linear(3, 2)
    optimizer = make_optimizer(OptimSettings(), model)
    steps(model, optimizer, 1)
    flat = state_tensors(optimizer, trainable(model))
    flat = {key: value for key, value in flat.items() if key != "bias/exp_avg"}
    with pytest.raises(ResumeError, match="parameter 'bias'"):
        load_state_tensors(
            make_optimizer(OptimSettings(), model), trainable(model), flat, kept("adamw", model)
        )


def test_a_moment_of_another_shape_is_noticed() -> None:
    model = nn.Linear(3, 2)
    optimizer = make_optimizer(OptimSettings(), model)
    steps(model, optimizer, 1)
    flat = state_tensors(optimizer, trainable(model)) | {"weight/exp_avg": torch.zeros(3, 2)}
    with pytest.raises(ResumeError, match="parameter 'weight'"):
        load_state_tensors(optimizer, trainable(model), flat, kept("adamw", model))


class Counting(torch.optim.SGD):
    """Keep a plain number for every parameter, and move by it."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["count"] = state.get("count", 0) + 1
                state["mean"] = 0.9 * state.get("mean", 0.0) + 0.1  # no float32
                parameter.data.sub_(parameter.grad, alpha=group["lr"] / state["count"])


def test_plain_numbers_come_back_as_numbers() -> None:
    model = nn.Linear(3, 2)
    optimizer = Counting(model.parameters(), lr=0.1)
    steps(model, optimizer, 3)
    flat = state_tensors(optimizer, trainable(model))
    other = Counting(model.parameters(), lr=0.1)
    load_state_tensors(other, trainable(model), flat)
    assert other.state == optimizer.state and type(other.state[model.bias]["count"]) is int


def test_what_is_neither_tensor_nor_number_is_refused() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[model.bias]["history"] = []
    with pytest.raises(RecipeError, match="SGD keeps a list as 'history'"):
        state_tensors(optimizer, trainable(model))


def trainer(**changes: Any) -> Trainer:
    data = toy.table(24)
    settings: dict[str, Any] = {"optim": OptimSettings(lr=1e-2, warmup=0), **changes}
    return Trainer(
        toy.policy(),
        build_loss({"name": "simpo"}),
        PlannedSteps(toy.plan(data), data),
        num_steps=6,
        **settings,
    )


def own(parameters: Any) -> torch.optim.Optimizer:
    """Give the head a tenth of the rate of everything else."""
    head = [p for name, p in parameters.items() if "lm_head" in name]
    rest = [p for name, p in parameters.items() if "lm_head" not in name]
    return torch.optim.SGD([{"params": rest}, {"params": head, "lr": 1e-3}], lr=1e-2, momentum=0.9)


WAYS = {name: OptimSettings(optimizer=name, lr=1e-2, warmup=0) for name in ON_CPU} | {"own": own}


@pytest.mark.parametrize("name", WAYS)
def test_a_run_saved_and_resumed_ends_bit_equal(name: str, tmp_path: Path) -> None:
    """Three steps, saved, and three steps by a new trainer: as six steps at once."""
    straight = trainer(optim=WAYS[name])
    rates = [result.lr for result in straight]
    broken = trainer(optim=WAYS[name])
    for result in broken:
        if result.index == 2:
            break
    write_files(tmp_path, state_files(broken), broken)
    resumed = trainer(optim=WAYS[name], start_step=3)
    resumed.policy.model.load_state_dict(broken.policy.model.state_dict())
    restore(resumed, tmp_path)
    assert [result.lr for result in resumed] == rates[3:]
    for key, parameter in straight.parameters.items():
        assert torch.equal(resumed.parameters[key], parameter), key


@pytest.mark.parametrize(("before", "after"), [("adamw", "muon"), ("muon", "adafactor"), ("own", "adamw")])
def test_the_state_of_another_optimizer_is_refused(before: str, after: str, tmp_path: Path) -> None:
    first = trainer(optim=WAYS[before])
    next(iter(first))
    write_files(tmp_path, state_files(first), first)
    assert load_file(str(tmp_path / "optimizer.safetensors"))
    with pytest.raises(ResumeError) as caught:
        restore(trainer(optim=WAYS[after]), tmp_path)
    told = {"own": "torch.optim.sgd.SGD"}.get(before, before)
    assert f"holds the state of the optimizer {told}, but this run trains with {after}." in str(caught.value)
