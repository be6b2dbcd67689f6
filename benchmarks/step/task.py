"""What every contender of the step benchmark is given alike: rows, their order, model and optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from benchmarks.step.models import SMALL, Model, build_base, with_adapters
from benchmarks.step.rows import Rows
from prefopt.data.packs.plan import Plan
from prefopt.data.tokens.table import GroupTable
from prefopt.types import TokenizedGroup


@dataclass(frozen=True)
class Task:
    """The same for every contender: rows, their order, model, optimizer.

    Step ``i`` of every contender trains on the same pairs, unless it sorts them by length.
    """

    rows: Rows
    num_steps: int
    device: str = "cpu"
    pairs_per_step: int = 8
    tokens_per_batch: int = 8192  # of ours
    pairs_per_batch: int | None = None  # of TRL's; None: the whole step in one
    warmup: int = 0  # steps that are not timed
    lr: float = 1e-5
    beta: float = 0.1
    seed: int = 0
    records_losses: bool = False  # reads the loss on the host after every step
    model: Model = SMALL
    checked: tuple[TokenizedGroup, ...] = ()  # rows on which loss and gradient are compared before timing
    other_reference: bool = False  # other weights than training starts from, so that losses differ from ln 2

    @cached_property
    def config(self) -> Any:
        return self.model.config()

    def make_base(self, attention: str | None = None) -> Any:
        """Build the model to train, without adapters; equal weights in every process."""
        return build_base(self.model, self.device, self.seed, attention)

    def make_model(self, attention: str | None = None) -> Any:
        """Build the model to train."""
        base = self.make_base(attention)
        if not self.model.rank:
            return base
        return with_adapters(base, self.model, seed=self.seed, is_start=not self.other_reference)

    def make_other(self, attention: str | None = None) -> Any:
        """Build the reference that has weights of its own."""
        return build_base(self.model, self.device, self.seed + 1, attention)

    @cached_property
    def table(self) -> GroupTable:
        return GroupTable.from_groups(self.rows.groups)

    def plan(self, share_prompts: bool = True, tokens_per_batch: int | None = None) -> Plan:
        """Spread the rows over steps; the order is the same in both layouts and for any budget of tokens."""
        return Plan(
            self.table.sizes(share_prompts),
            units_per_step=self.pairs_per_step,
            tokens_per_batch=tokens_per_batch or self.tokens_per_batch,
            seed=self.seed,
        )

    def order(self) -> list[int]:
        """Return the row of every pair that is trained on, step after step."""
        plan = self.plan(tokens_per_batch=int(self.table.sizes(True).tokens.max()))
        return [int(row) for step in range(self.num_steps) for row in plan.groups(step)]
