"""The engine: which launches it refuses, each in one line, and how it clips."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from torch import nn

from prefopt import engine
from prefopt.engine import sharding
from prefopt.errors import RecipeError


def accelerator(**changes: Any) -> Any:
    """Stand in for what accelerate found on two CPUs."""
    found = {"distributed_type": DistributedType.MULTI_CPU, "num_processes": 2, "parallelism_config": None}
    return SimpleNamespace(**{**found, **changes})


def launched(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", **variables}.items():
        monkeypatch.setenv(name, value)


def test_fsdp2_is_read_from_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers and resharding as the launcher says; one process has nothing to spread."""
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    assert engine._sharding(accelerator()) is None
    launched(
        monkeypatch,
        FSDP_RESHARD_AFTER_FORWARD="false",
        FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP",
        FSDP_TRANSFORMER_CLS_TO_WRAP="LlamaDecoderLayer",
    )
    found = engine._sharding(accelerator())
    assert found == engine._Sharding(units=("LlamaDecoderLayer",), reshard=False)
    assert engine._sharding(accelerator(num_processes=1)) is None


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"FSDP_VERSION": "1"}, "fsdp_version 1"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "model.checkpointing=true"),
        ({"FSDP_IGNORED_MODULES": "lm_head"}, "fsdp_ignored_modules"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DEEPSPEED"),
    ],
)
def test_what_is_not_carried_out_is_refused(
    variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that names the setting, also on CPUs, where accelerate would leave the strategy out."""
    launched(monkeypatch, **variables)
    with pytest.raises(RecipeError, match=said) as caught:
        engine._sharding(accelerator())
    assert "\n" not in str(caught.value)


def test_other_parallelism_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensor and context parallelism, and strategies of their own."""
    launched(monkeypatch)
    with pytest.raises(RecipeError, match="parallelism_config"):
        engine._sharding(accelerator(parallelism_config=object()))
    with pytest.raises(RecipeError, match="MEGATRON_LM"):
        engine._sharding(accelerator(distributed_type=DistributedType.MEGATRON_LM))


def test_a_model_without_known_layers_says_which_setting_names_them() -> None:
    """Without layers as units, sharding would gather the whole model at once."""
    with pytest.raises(RecipeError, match=r"no layer of class Block.*fsdp_transformer_layer_cls_to_wrap"):
        sharding._layers(nn.Linear(2, 2), ["Block"])


def test_whole_tensors_pass_through() -> None:
    """What is not sharded is copied, never aliased: a loaded optimizer must not share its file's memory."""
    value = torch.arange(3.0)
    assert torch.equal(sharding.gather(value), value)
    assert sharding.gather(value, keep=False) is None
    share = sharding.spread_like(value, torch.empty(3))
    assert torch.equal(share, value) and share.data_ptr() != value.data_ptr()


@pytest.mark.parametrize("limit", [None, 1.0, 100.0])
def test_gradients_are_scaled_down_to_the_limit(limit: float | None) -> None:
    """Gradients (3, 0) and (0, 4) have the norm 5; a limit of 1 leaves a fifth of each, a larger one all."""
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    norm = engine.Engine(cpu=True).clip(parameters, limit)
    assert norm.item() == 5.0
    share = 0.2 if limit == 1.0 else 1.0
    # 1e-6 is added to the norm before the division
    torch.testing.assert_close(parameters[0].grad, share * torch.tensor([3.0, 0.0]), rtol=1e-6, atol=0)
    torch.testing.assert_close(parameters[1].grad, share * torch.tensor([0.0, 4.0]), rtol=1e-6, atol=0)
    assert parameters[2].grad is None
