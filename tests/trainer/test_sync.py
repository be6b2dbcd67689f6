"""The host never waits for the device within a step, but for one flag: shown without a GPU."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
import toy
from meta_device import META, Watch, pose_as_gpu
from torch import Tensor

from prefopt.assemble.loss import build_loss
from prefopt.data.packs.pack import pack
from prefopt.data.packs.steps import PlannedSteps
from prefopt.engine import Engine
from prefopt.policy import Policy
from prefopt.reference import CachedReference, FrozenReference, fill_cache
from prefopt.reference.cache import LogpCache
from prefopt.trainer import Trainer
from prefopt.types import PairLogps, SeqLogps

LOSSES = [
    {"name": "dpo"},
    {"name": "dpo", "with": [{"name": "with_nll", "nll": "batch_token"}]},
    {"name": "wpo"},
    {"name": "ld_dpo"},
    {"name": "sft"},
    {"name": "plackett_luce"},
    {"name": "tdpo"},
    {"name": "mapo"},
    {"name": "aot"},
    {"name": "beta_dynamic"},
    {"name": "alpha_margin"},
    {"name": "bco"},
    {"name": "relative", "weighting": "diagonal"},
]


class MetaEngine(Engine):
    """Take meta tensors for those of a GPU, and count how often the flag of a step is read."""

    def __init__(self) -> None:
        super().__init__(cpu=True)
        self.device = META
        self.reads = 0

    def max(self, values: Tensor) -> Tensor:
        assert values.device == META
        self.reads += 1
        return torch.zeros(values.shape, dtype=values.dtype)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Watch meta tensors that take the ways of a GPU's."""
    pose_as_gpu(monkeypatch)
    return Watch()


def policy_on_meta() -> Policy:
    """Return a policy whose way through the model has been proven, moved to the stand-in for a GPU."""
    policy = toy.policy(dtype=torch.float32)
    policy(pack(toy.groups(1)))  # the first call compares numbers, once
    policy.model.to(META)
    return policy


@pytest.mark.parametrize("block", LOSSES, ids=lambda block: f"{block['name']}-{len(block)}")
def test_a_step_waits_once(block: dict[str, Any], watch: Watch) -> None:
    """Steps of several packs wait for the device at the flag alone, and every copy to it is asynchronous."""
    loss = build_loss(block)
    unit = loss.contract.structure
    data = toy.table(6) if unit != "lists" else toy.GroupTable.from_groups(toy.scored_groups(6))
    engine = MetaEngine()
    trainer = Trainer(
        policy_on_meta(),
        loss,
        PlannedSteps(toy.plan(data, budget=60, per_step=4, unit=unit), data),
        num_steps=2,
        reference=FrozenReference(policy_on_meta(), is_start=False),
        engine=engine,
    )
    with watch:
        results = list(trainer)
    assert len(results) == engine.reads == 2
    assert watch.waits == []
    assert watch.copies > 0


def test_a_cached_reference_is_copied_without_waiting(watch: Watch) -> None:
    """Its log-probs lie on the host; they reach the device from pinned memory."""
    data, cache = toy.table(8), LogpCache()
    plan = toy.plan(data)
    batches = [batch for step in PlannedSteps(plan, data).stream(0, 1) for batch in step.packs]
    fill_cache(cache, toy.reference(dtype=torch.float32), batches)
    trainer = Trainer(
        policy_on_meta(),
        build_loss({"name": "dpo"}),
        PlannedSteps(plan, data),
        num_steps=1,
        reference=CachedReference(cache, is_start=False),
        engine=MetaEngine(),
    )
    with watch:
        list(trainer)
    assert watch.waits == [] and watch.copies > 0


def test_evaluation_waits_for_its_sums_alone(watch: Watch) -> None:
    """No pack of an evaluation is waited for; the sums are copied to the host once, which meta tensors refuse."""
    data = toy.table(16)
    trainer = Trainer(
        policy_on_meta(),
        build_loss({"name": "simpo"}),
        PlannedSteps(toy.plan(data), data),
        num_steps=1,
        engine=MetaEngine(),
    )
    with watch, pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        trainer.evaluate(PlannedSteps(toy.plan(data, budget=60), data))
    assert watch.waits == ["aten._to_copy.default"] and watch.copies > 0


def test_sums_and_gathers_of_a_batch_make_nothing_on_the_host(watch: Watch) -> None:
    """Once a pack is on the device, totals, means, pairs and lengths of its log-probs copy nothing."""
    batch = pack(toy.groups(4)).pin_memory()
    with watch:
        batch = batch.to(META, non_blocking=True)
        moved = watch.copies
        logps = SeqLogps(tokens=torch.zeros(batch.target_ids.shape, device=META), lengths=batch.lengths)
        sides = [logps.take([pair[side] for pair in batch.pairs]) for side in (0, 1)]
        pairs = PairLogps(*sides)
        for values in (logps, pairs.chosen, pairs.rejected.detach()):
            assert values.total.shape == values.mean.shape == values.length.shape == (len(values),)
            assert values.sequence_of.shape == values.tokens.shape
    assert watch.waits == [] and watch.copies == moved


OFFENCES = {
    "list": lambda x: torch.tensor([1, 2], device=META),
    "copy": lambda x: torch.zeros(3).to(META),
    "copy from memory that is not pinned": lambda x: torch.zeros(3).to(META, non_blocking=True),
    "checked sum": lambda x: torch.segment_reduce(x, "sum", lengths=x.long(), initial=0.0),
    "repeats": lambda x: torch.repeat_interleave(x, x.long()),
    "flag": lambda x: torch.equal(x, x),
    "mask": lambda x: x[x > 0],
    "number": lambda x: x.sum().item(),
}


@pytest.mark.parametrize("name", OFFENCES)
def test_the_watch_sees_an_offence(name: str, watch: Watch) -> None:
    """Each of these makes the host wait on a GPU; meta tensors refuse some of them besides."""
    with watch, suppress(NotImplementedError, RuntimeError):
        OFFENCES[name](torch.zeros(3, device=META))
    assert len(watch.waits) >= 1
