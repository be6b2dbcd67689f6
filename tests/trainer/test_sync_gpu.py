"""On a GPU, an optimizer step waits for the device exactly once. Run ``pytest -m gpu``."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import toy

from prefopt.assemble.loss import build_loss
from prefopt.data.packs.steps import PlannedSteps
from prefopt.engine import Engine
from prefopt.policy import Policy
from prefopt.reference import CachedReference, FrozenReference, Reference, fill_cache
from prefopt.reference.cache import LogpCache
from prefopt.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # the compiler warns about settings and internals of its own
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]
LOSSES = [{"name": "dpo"}, {"name": "simpo"}, {"name": "wpo"}, {"name": "ld_dpo"}, {"name": "sft"}]


@contextmanager
def counting_waits() -> Iterator[list[str]]:
    """Collect where in our code, or by whom, the host was made to wait for the GPU."""
    found: list[str] = []
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        # warns itself that it does not see everything
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found += [f"{w.filename}:{w.lineno}" for w in seen if "synchronizing CUDA operation" in str(w.message)]


def on_gpu() -> Policy:
    policy = toy.policy(dtype=torch.float32)
    policy.model.cuda()
    return policy


def run(block: dict[str, Any], reference: Reference | None, policy: Policy | None = None) -> list[str]:
    """Return every wait in steps 2 to 4: the first one also proves the model and warms the kernels up."""
    loss, data = build_loss(block), toy.table(64)
    policy = policy or on_gpu()
    trainer = Trainer(
        policy,
        loss,
        PlannedSteps(toy.plan(data, budget=120, unit=loss.contract.structure), data),
        num_steps=4,
        reference=reference if loss.contract.needs_reference else None,
        engine=Engine(),
    )
    steps = iter(trainer)
    next(steps)
    with counting_waits() as found:
        assert len(list(steps)) == 3
    return found


@pytest.mark.parametrize("block", LOSSES, ids=lambda block: block["name"])
def test_a_step_waits_once(block: dict[str, Any]) -> None:
    """Three steps of several packs: three reads of the flag, all at one line of the trainer."""
    found = run(block, FrozenReference(on_gpu(), is_start=False))
    assert len(found) == 3 and len(set(found)) == 1, found
    assert "trainer/__init__.py" in found[0]


def test_compiled_layers_add_no_wait() -> None:
    """Their segments travel as a table on the host, which is read there."""
    policy = Policy(toy.llama(dtype=torch.float32).cuda(), compile_for=128)
    found = run({"name": "dpo"}, FrozenReference(on_gpu(), is_start=False), policy)
    assert len(found) == 3 and len(set(found)) == 1, found


def test_a_cached_reference_adds_no_wait() -> None:
    cache, data = LogpCache(), toy.table(64)
    live = FrozenReference(on_gpu(), is_start=False)
    steps = PlannedSteps(toy.plan(data), data).stream(0, 8)
    fill_cache(cache, live, (batch.to("cuda") for step in steps for batch in step.packs))
    found = run({"name": "dpo"}, CachedReference(cache, is_start=False))
    assert len(found) == 3 and len(set(found)) == 1, found


def test_an_evaluation_waits_once() -> None:
    data = toy.table(64)
    trainer = Trainer(
        on_gpu(),
        build_loss({"name": "simpo"}),
        PlannedSteps(toy.plan(data), data),
        num_steps=1,
        engine=Engine(),
    )
    plan = toy.plan(data, budget=120)
    trainer.evaluate(PlannedSteps(plan, data))
    with counting_waits() as found:
        trainer.evaluate(PlannedSteps(plan, data))
    assert len(found) == 1, found


def test_the_count_sees_an_offence() -> None:
    with counting_waits() as found:
        torch.tensor([1, 2], device="cuda")
    assert len(found) == 1
