"""The plan of a recipe's memory is made from configurations alone, and of the models that would be trained."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from lanes import slow_but
from torch import nn

from prefopt.assemble import memory as build_memory
from prefopt.assemble import model as assemble_model
from prefopt.assemble.fit import loss_of
from prefopt.assemble.model import Start
from prefopt.assemble.skeleton import skeleton_of
from prefopt.errors import ModelError, RecipeError
from prefopt.memory import MemoryPlan, Ranks, Sample, Target
from prefopt.recipe import Recipe, load_recipe

peft = pytest.importorskip("peft")


SEVERAL = "{name: dpo, with: [{name: multi_ref}]}"


def recipe_of(folder: Path, **changes: str) -> Recipe:
    path, *overrides = toy.recipe(folder, **changes)
    return load_recipe(path, overrides)


def without_weights(folder: Path) -> None:
    for file in folder.rglob("*.safetensors"):
        file.unlink()


def save_adapter(folder: Path) -> Path:
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(toy.llama(0, torch.float32), config).save_pretrained(folder)
    return folder


def plan(recipe: Recipe) -> MemoryPlan:
    cpu = Target.of("cpu", torch.float32)
    return build_memory.plan_memory(recipe, loss_of(recipe), Sample.uniform(9, (4, 5)), cpu, Ranks())


def facts(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    return {n: (tuple(p.shape), p.dtype, p.requires_grad) for n, p in model.named_parameters()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model__dtype": "bfloat16", "model__checkpointing": "true"},
        {"model__lora": "{rank: 4, dropout: 0.5}", "model__dtype": "bfloat16"},
        {"model__lora": "{targets: [q_proj, v_proj]}"},
        {"model__adapter": "{folder}/adapter", "reference": "initial"},
        {"model__adapter": "{folder}/adapter", "reference": "adapter_off"},
        {"model__path": "builtin:tiny"},
    ],
    ids=str,
)
def test_a_skeleton_is_the_policy_without_its_weights(changes: dict[str, str], tmp_path: Path) -> None:
    save_adapter(tmp_path / "adapter")
    recipe = recipe_of(tmp_path, **{key: v.replace("{folder}", str(tmp_path)) for key, v in changes.items()})
    real = assemble_model.policy_of(Start.of(recipe))
    without_weights(tmp_path)
    found = skeleton_of(Start.of(recipe))
    assert facts(found.model) == facts(real.model)
    assert found.drops == real.drops
    for one, other in zip(found.model.modules(), real.model.modules(), strict=True):
        assert type(one) is type(other)
        assert getattr(one, "gradient_checkpointing", None) == getattr(other, "gradient_checkpointing", None)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> int:
    """Return what the small model weighs."""
    return plan(recipe_of(tmp_path_factory.mktemp("whole"))).weights


@pytest.mark.parametrize(
    ("changes", "models", "heads"),
    [
        ({}, 1, 1),
        ({"reference": "cached"}, 0, 0),
        ({"loss": "{name: simpo}"}, 0, 0),
        ({"model__lora": "{rank: 2}"}, 0, 1),
        ({"model__lora": "{rank: 2}", "reference": "initial"}, 0, 1),
        ({"model__adapter": "{folder}/adapter"}, 0, 1),
        ({"reference": "{path: {folder}/model}"}, 1, 1),
        ({"reference": "{path: {folder}/model, cached: true}"}, 0, 0),
        ({"reference": "{name: moving}"}, 1, 1),
        (
            {
                "reference": "[initial, {path: {folder}/model}]",
                "loss": SEVERAL,
            },
            2,
            2,
        ),
    ],
    ids=str,
)
def test_references_cost_what_they_are(
    changes: dict[str, str], models: int, heads: int, weights: int, tmp_path: Path
) -> None:
    save_adapter(tmp_path / "adapter")
    given = {key: v.replace("{folder}", str(tmp_path)) for key, v in changes.items()}
    recipe = recipe_of(tmp_path, **given)
    without_weights(tmp_path)
    found = plan(recipe)
    assert found.references == models * weights
    assert len(found.step.reference_heads) == heads


@pytest.mark.parametrize(
    ("kind", "bits"), slow_but([("nf4", 4.126953125)], [("nf4", 4.126953125), ("int8", 8)])
)
def test_weights_in_few_bits_are_counted_as_such(kind: str, bits: float, tmp_path: Path) -> None:
    """Two layers of q 16 x 16, k and v 8 x 16, o 16 x 16, gate, up and down 32 x 16: 2304 weights each.

    nf4: 4 bits, 8 for 64 weights, 32 for 256 of those. The largest, 512 weights, is unpacked to bfloat16.
    """
    lora = {"model__lora": "{rank: 2}", "model__autocast": "bfloat16"}
    whole = plan(recipe_of(tmp_path, **lora))
    packed = plan(recipe_of(tmp_path, **lora, model__quantization=kind))
    layers = 2 * 2304
    assert whole.weights - packed.weights == pytest.approx(layers * (4 - bits / 8), abs=7)
    assert packed.unpacked == 1024
    assert packed.gradients == whole.gradients and packed.references == 0
    copy = plan(recipe_of(tmp_path, **lora, model__quantization=kind, reference="{name: moving, mix: 1}"))
    assert copy.references == pytest.approx(packed.weights, abs=7)


def test_weights_stored_in_few_bits_are_not_planned(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    file = tmp_path / "model" / "config.json"
    stored = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    file.write_text(json.dumps(json.loads(file.read_text()) | stored))
    with pytest.raises(ModelError, match=r"model\.path: .* stores its weights quantised"):
        plan(recipe)


def test_a_recipe_for_compiled_layers_is_planned_as_they_are_written(tmp_path: Path) -> None:
    written = plan(recipe_of(tmp_path))
    compiled = plan(recipe_of(tmp_path, model__compile="true", batch__tokens_per_batch="128"))
    assert compiled.parts(1000) == written.parts(1000)


@pytest.mark.parametrize(
    "loss", slow_but(["{name: sparse_mask}"], ["{name: tdpo}", "{name: mapo}", "{name: sparse_mask}"])
)
def test_what_a_loss_reads_of_single_tokens_costs_memory(loss: str, tmp_path: Path) -> None:
    plain, found = plan(recipe_of(tmp_path)), plan(recipe_of(tmp_path, loss=loss))
    assert found.diverges and not plain.diverges
    assert found.activations(1000) > plain.activations(1000)
    assert (found.weights > plain.weights) == ("sparse" in loss)


def test_no_weight_is_made_to_plan_a_large_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hidden size of 8192 makes two layers of 3 GB each and 8 GB of embeddings and head; none is ever here."""
    recipe = recipe_of(tmp_path)
    file = tmp_path / "model" / "config.json"
    sizes = {"hidden_size": 8192, "intermediate_size": 28672, "vocab_size": 128256, "head_dim": 2048}
    file.write_text(json.dumps(json.loads(file.read_text()) | sizes))
    without_weights(tmp_path)
    # torch knows its constructors by identity, which the poisoned ones of the other tests do not have
    monkeypatch.undo()
    torch.utils._device._device_constructors.cache_clear()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = plan(recipe)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert found.weights > 14 << 30
    assert grown < 1 << 30


def test_attention_over_all_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"^model\.attention: the memory of 'dense'"):
        plan(recipe_of(tmp_path, model__attention="dense"))


def test_a_configuration_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"reference\.path: there is no folder '/nowhere'\. Check"):
        plan(recipe_of(tmp_path, reference="{path: /nowhere}"))
    with pytest.raises(ModelError, match=r"model\.adapter: there is no folder '/nowhere'\. Check"):
        plan(recipe_of(tmp_path, model__adapter="/nowhere"))
