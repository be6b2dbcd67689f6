"""One of two gloo ranks: three steps of each optimizer alone, and over ranks with a stop in between."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import toy
from safetensors.torch import save_file
from torch import Tensor

from prefopt.assemble.loss import build_loss
from prefopt.data.packs.steps import PlannedSteps
from prefopt.engine import Engine
from prefopt.engine.sharding import whole
from prefopt.errors import RecipeError
from prefopt.optim import OptimSettings, state_tensors
from prefopt.trainer import Trainer
from prefopt.trainer.state import restore, state_files, write_files

STEPS, STOP = 3, 2
CASES = {"ddp": ("adamw", "adafactor", "muon"), "fsdp": ("adamw", "muon")}


class Alone(Engine):
    """The engine of a run of one process, though a second one does the same."""

    def __init__(self) -> None:
        super().__init__(cpu=True)
        self.rank, self.world = 0, 1


def build(engine: Engine, name: str, start_step: int = 0) -> Trainer:
    data = toy.table(24)
    return Trainer(
        toy.policy(),
        build_loss({"name": "dpo"}),
        PlannedSteps(toy.plan(data, budget=80, world=engine.world), data),
        num_steps=STEPS,
        reference=toy.reference(seed=1),
        optim=OptimSettings(optimizer=name, lr=1e-2, weight_decay=0.1, warmup=1, clip=0.05),
        engine=engine,
        start_step=start_step,
    )


def resumed(engine: Engine, name: str, folder: Path) -> Trainer:
    """Train over ranks, stop, write the state down, and go on with it in a new trainer."""
    first = build(engine, name)
    for result in first:
        if result.index == STOP - 1:
            break
    files = state_files(first)
    if engine.is_main:
        folder.mkdir()
        write_files(folder, files, first)
    engine.barrier()
    second = build(engine, name, start_step=STOP)
    with torch.no_grad():
        for key, parameter in second.parameters.items():
            parameter.copy_(first.parameters[key])
    restore(second, folder)
    list(second)
    return second


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    out: dict[str, Tensor] = {}
    for kind, names in CASES.items():
        if kind == "fsdp":
            os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
        engine = Engine(cpu=True)
        os.environ.pop("ACCELERATE_USE_FSDP", None)
        for name in names:
            runs = {"alone": build(Alone(), name), "ranks": resumed(engine, name, folder / f"{kind}-{name}")}
            list(runs["alone"])
            for which, trainer in runs.items():
                for key, parameter in trainer.parameters.items():
                    out[f"{kind}/{name}/{which}/weight/{key}"] = whole(parameter.detach())
                for key, value in state_tensors(trainer.optimizer, trainer.trained).items():
                    out[f"{kind}/{name}/{which}/state/{key}"] = value
    assert all(p.to_local().numel() < p.numel() for p in trainer.parameters.values())
    try:
        build(engine, "adafactor")
        message = ""
    except RecipeError as error:
        message = str(error)
    assert message.startswith("optim.name: adafactor averages whole rows and columns, which FSDP2"), message
    save_file({k: v.contiguous() for k, v in out.items()}, str(folder / f"rank{engine.rank}.safetensors"))
    engine.finish()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
