"""One of two gloo ranks: losses over a whole step, alone, then on two ranks, then with weights spread over them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import coupled
import torch
from safetensors.torch import save_file
from sharded_worker import Alone, Own
from torch import Tensor

from prefopt.engine import Engine
from prefopt.engine.sharding import whole


def record(case: str, engine: Any, per_step: int) -> dict[str, Tensor]:
    """Return all numbers of the gradient of step 0 and then of two steps and an evaluation."""
    data = coupled.rows_of(case, 16)
    trainer = coupled.trainer_of(case, data, engine, budget=40, per_step=per_step, steps=2)
    sums, _, packs, *_ = trainer.accumulator.run(trainer.steps.build(0, trainer.reader))
    out = {"packs": torch.tensor([len(packs), sum(batch.is_ghost for batch in packs)])}
    names, vector = sums.vector()
    vector = vector if isinstance(engine, Alone) else engine.sum(vector)
    out |= {f"metric/{name}": value for name, value in zip(names, vector, strict=True)}
    out |= {f"grad/{key}": whole(p.grad).clone() for key, p in trainer.parameters.items()}
    trainer.optimizer.zero_grad()
    for result in trainer:
        vector = result.sums.vector()[1]
        out[f"step/{result.index}"] = vector if isinstance(engine, Alone) else engine.sum(vector)
        out |= {
            f"carried/{result.index}/{key}": value.clone() for key, value in trainer.objective.carried.items()
        }
    out |= {f"weight/{key}": whole(p.detach()).clone() for key, p in trainer.parameters.items()}
    values = trainer.evaluate(trainer.steps)
    out["evaluation"] = torch.tensor(list(values.values()), dtype=torch.float64)
    return out


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    engine = Engine(cpu=True)
    out: dict[str, Tensor] = {}
    for case, split in coupled.SPLITS:
        per_step = 1 if split == "ghost" else 8
        engines = {"alone": Alone(), "two": Own() if split == "sharded" else engine}
        for who, each in engines.items():
            found = record(case, each, per_step)
            out |= {f"{case}/{split}/{who}/{key}": value for key, value in found.items()}
    save_file(
        {k: v.contiguous().clone() for k, v in out.items()}, str(folder / f"rank{engine.rank}.safetensors")
    )
    engine.finish()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
