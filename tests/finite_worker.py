"""One of several ranks of ``prefopt train`` whose second step leaves a weight, or a moment, that is not a number."""

from __future__ import annotations

import math
import os
import sys
from typing import Any

import torch

from prefopt.cli import main
from prefopt.engine.sharding import local
from prefopt.trainer import Trainer


def spoil_after(step: int, what: str, value: float) -> None:
    """Let the last number of the last trained tensor, or of its second moment, become ``value`` on the last rank."""
    real = Trainer._step

    def spoilt(self: Trainer, batch: Any, lr: float) -> Any:
        found = real(self, batch, lr)
        if batch.index == step and self.engine.rank == self.engine.world - 1:
            tensor = list(self.trained.values())[-1]
            if what == "moment":
                tensor = self.optimizer.state[tensor]["exp_avg_sq"]
            with torch.no_grad():
                local(tensor).view(-1)[-1] = value
        return found

    Trainer._step = spoilt  # type: ignore[method-assign]


if __name__ == "__main__":
    spoil_after(1, "weight", math.nan)
    code = main(["train", *sys.argv[1:]])
    with open(f"{os.environ['CODES']}/{os.environ['RANK']}", "w") as file:
        file.write(str(code))
