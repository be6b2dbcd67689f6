"""prefopt as a contender of the step benchmark: its parts can be switched off one by one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch

from benchmarks.shared.environment import is_installed
from benchmarks.step.contender import AfterStep, NotAvailableError
from benchmarks.step.flops import Row
from benchmarks.step.models import recompute_layers
from benchmarks.step.task import Task
from benchmarks.step.usual_way import PaddedPolicy, head_as
from benchmarks.step.workloads import rows_of
from prefopt.data.packs.pack import pack
from prefopt.data.packs.plan import Plan
from prefopt.data.packs.steps import PlannedSteps
from prefopt.data.tokens.table import GroupTable
from prefopt.engine import Engine
from prefopt.kernels import which_impl
from prefopt.kernels.prefix_attention import BACKENDS
from prefopt.losses import dpo
from prefopt.optim import OptimSettings
from prefopt.policy import Policy
from prefopt.reference import AdapterOffReference, CachedReference, FrozenReference, Reference, fill_cache
from prefopt.reference.cache import LogpCache
from prefopt.trainer import Trainer
from prefopt.types import PackedBatch

NO_MOVE = 1e-30
"""A learning rate, above 0 as it must be, at which no weight of half or single precision moves."""


@dataclass(frozen=True, slots=True)
class Way:
    """Which of prefopt's parts are on.

    Args:
        layout: ``shared``, ``padding-free``, or ``padded``: one padded row per answer, the usual way.
        head: ``auto``, ``fused``, ``chunked``, or ``logits``: all logits of the answers, the usual way.
        is_cached: the reference is scored before training.
        attention: over packed rows, as ``Policy`` takes it; the padded layout has that of transformers.
        compiles: the layers go through torch.compile, for packs filled up to the token budget.
        recomputes: layers are computed again in the backward.
    """

    layout: str = "shared"
    head: str = "auto"
    is_cached: bool = False
    attention: str = "auto"
    compiles: bool = False
    recomputes: bool = False

    def obstacle(self, task: Task) -> str:
        """Say why this cannot run here, or nothing."""
        if task.model.rank and not is_installed("peft"):
            return "peft is not installed"
        if self.layout != "padded" and self.attention not in ("auto", *BACKENDS):
            return f"this version has no attention '{self.attention}'"
        if self.layout == "padded" and self.compiles:
            return "the padded layout is not compiled"
        if self.head == "fused":
            probe = torch.zeros(1, 16, dtype=task.model.compute, device=task.device)
            try:
                which_impl(probe, probe, "fused")
            except ValueError as error:
                return str(error).removeprefix("token_logps: ").split(". Use ")[0]
        return ""


class Prefopt:
    """Our trainer, as a script would call it."""

    def __init__(self, task: Task, way: Way | None = None) -> None:
        self.task, self.way = task, way or Way()
        self.share_prompts = self.way.layout == "shared"

    def load(self) -> None:
        """Lay the rows out in steps and packs.

        Raises:
            NotAvailableError: something this needs is not there.
        """
        if why := self.way.obstacle(self.task):
            raise NotAvailableError(why)
        self.plan = self.task.plan(self.share_prompts)

    def build(self) -> None:
        task = self.task
        model = task.make_model()
        # before training starts, as adapters are switched off in the very model that is trained
        self.policy = self._policy(model, is_trained=True)
        self.engine = Engine(
            cpu=task.device == "cpu", autocast=torch.bfloat16 if task.model.autocast else None
        )
        self.policy.place(self.engine)
        self.reference = self._reference(model)
        if self.way.is_cached:
            self.reference = self._cached(self.reference)
        self.trainer = self._trainer(self.plan, task.table, task.num_steps, task.lr)

    def _trainer(self, plan: Plan, table: GroupTable, num_steps: int, lr: float) -> Trainer:
        return Trainer(
            self.policy,
            partial(dpo, beta=self.task.beta),
            PlannedSteps(plan, table, self.share_prompts),
            num_steps=num_steps,
            reference=self.reference,
            optim=OptimSettings(lr=lr, schedule="constant", warmup=0, clip=1.0),
            engine=self.engine,
            seed=self.task.seed,
        )

    def _policy(self, model: Any, *, is_trained: bool = False) -> Policy:
        if is_trained and self.way.recomputes:
            recompute_layers(model)
        if self.way.layout == "padded":
            return PaddedPolicy(model)
        tokens = self.task.tokens_per_batch if self.way.compiles else None
        return Policy(model, attention=self.way.attention, compile_for=tokens)

    def _reference(self, model: Any) -> Reference:
        if self.task.model.rank:
            return AdapterOffReference(self.policy, is_start=not self.task.other_reference)
        if self.task.other_reference:
            return FrozenReference(self._policy(self.task.make_other()), is_start=False)
        return FrozenReference(self._policy(copy.deepcopy(model)), is_start=True)

    def _cached(self, reference: Reference) -> CachedReference:
        cache = LogpCache()
        with head_as(self.way.head), self.engine.autocast():
            fill_cache(cache, reference, self._packs())
        return CachedReference(cache, is_start=reference.is_start)

    def _packs(self) -> Iterator[PackedBatch]:
        steps = range(min(self.task.num_steps, self.plan.num_steps(1)))
        members = chain.from_iterable(self.plan.step(step).ranks[0] for step in steps)
        timed = ([self.task.table[i] for i in part] for part in members)
        checked = ([group] for group in self.task.checked)
        for groups in chain(timed, checked):
            yield pack(groups, share_prompts=self.share_prompts).to(self.task.device)

    def check(self) -> tuple[float, float]:
        """Return loss and gradient norm on the rows to be checked; the weights stay as they are."""
        table = GroupTable.from_groups(self.task.checked)
        sizes = table.sizes(self.share_prompts)
        plan = Plan(sizes, units_per_step=int(sizes.pairs.sum()), tokens_per_batch=int(sizes.tokens.max()))
        with head_as(self.way.head):
            (result,) = self._trainer(plan, table, 1, NO_MOVE)
        return result.sums.values["loss"].item() / result.units, result.grad_norm.item()

    def train(self, after_step: AfterStep) -> None:
        with head_as(self.way.head):
            for result in self.trainer:
                is_read = self.task.records_losses
                if after_step(result.sums.values["loss"].item() / result.units if is_read else None):
                    break

    def batches(self, step: int) -> list[list[Row]]:
        """Return the lengths of the rows of every pack of one optimizer step."""
        members = self.plan.step(step).ranks[0]
        return [rows_of([self.task.table[i] for i in part]) for part in members]
