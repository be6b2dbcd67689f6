"""What optimizers keep for their parameters, in bytes by hand; and that their updates read nothing back."""

from __future__ import annotations

import pytest
import torch
import toy
from meta_device import META, Watch, pose_as_gpu
from torch import nn

from prefopt.memory import Ranks
from prefopt.optim import OPTIMIZERS, OptimSettings, kept, kept_bytes, make_optimizer

BYTES = {
    "adamw": 2 * 4 * 4224 + 4 + 2 * 4 * 66 + 4,
    "adamw_8bit": 2 * 4224 + 2 * 4 * 17 + 2 * 4 * 66 + 2 * 4 * 256,
    "adafactor": 4 * (66 + 64) + 4 + 4 * 66 + 4,
    "muon": 4 * 4224 + 2 * 4 * 66 + 4,
}


def test_the_bytes_of_every_optimizer_are_worked_out() -> None:
    assert BYTES.keys() == OPTIMIZERS.keys(), "give BYTES a sum for every optimizer of the table"


@pytest.mark.parametrize("name", BYTES)
def test_bytes_by_hand(name: str) -> None:
    """A weight of 66 * 64 = 4224 numbers, 17 blocks of at most 256, and a bias of 66, in float32.

    The tables of 256 levels, one for each moment, are there once for all parameters.
    """
    model = nn.Linear(64, 66, device="meta")
    assert kept_bytes(name, kept(name, model).values()) == BYTES[name]


def test_a_rank_keeps_the_state_of_its_rows() -> None:
    """The first of four ranks has 17 of 66 rows, and 17 of 66 biases; token weights are AdamW's, whole everywhere."""
    model, masks = nn.Linear(64, 66, device="meta"), nn.Linear(5, 1, bias=False, device="meta")
    part = Ranks(4, is_sharded=True).part
    alone = 4 * 17 * 64 + 2 * 4 * 17 + 4
    assert kept_bytes("muon", kept("muon", model, None, part).values()) == alone
    assert kept_bytes("muon", kept("muon", model, masks, part).values()) == alone + 2 * 4 * 5 + 4


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_an_update_waits_for_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pose_as_gpu(monkeypatch)
    model = toy.llama(dtype=torch.float32).to(META)
    optimizer = make_optimizer(OptimSettings(optimizer=name, lr=1e-3), model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with Watch() as watch:
        optimizer.step()
    assert watch.waits == [] and watch.copies == 0
    assert all(optimizer.state[p] for p in model.parameters())
