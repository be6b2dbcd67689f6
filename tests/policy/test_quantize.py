"""Weights in few bits: what is refused, and, where bitsandbytes is installed, adapters trained on them."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from transformers import LlamaConfig, LlamaForCausalLM

from prefopt.assemble import model as assemble_model
from prefopt.assemble.loss import build_loss
from prefopt.assemble.model import Start
from prefopt.cli import main
from prefopt.data.packs.pack import pack
from prefopt.data.packs.steps import PlannedSteps
from prefopt.engine import Engine
from prefopt.errors import ModelError, RecipeError
from prefopt.optim import total_size
from prefopt.policy import Policy, quantize
from prefopt.policy.load import load_model
from prefopt.recipe import Recipe, load_recipe
from prefopt.reference import AdapterOffReference
from prefopt.trainer import Trainer

peft = pytest.importorskip("peft")
is_installed = importlib.util.find_spec("bitsandbytes") is not None
needs_package = pytest.mark.skipif(not is_installed, reason="needs bitsandbytes")
GPU = torch.device("cuda", 0)
KINDS = ["nf4", "int8"]


def recipe_of(folder: Path, **changes: str) -> Recipe:
    path, *overrides = toy.recipe(folder, model__quantization="nf4", **changes)
    return load_recipe(path, overrides)


@pytest.fixture
def engine() -> Engine:
    return Engine(cpu=True)


def pretend(monkeypatch: pytest.MonkeyPatch, *, installed: bool) -> None:
    monkeypatch.setattr(quantize, "find_spec", lambda name: object() if installed else None)


def test_without_the_package_it_is_refused_in_one_line(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, installed=False)
    with pytest.raises(RecipeError, match=r"model.quantization: nf4 needs bitsandbytes") as caught:
        assemble_model.check_few_bits(recipe_of(tmp_path, model__lora__rank="2").model, engine)
    assert "pip install 'prefopt[quantization]'" in str(caught.value) and "\n" not in str(caught.value)


def test_without_a_gpu_it_is_refused_before_a_weight_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The command ends with exit code 2 and one line that names the place in the recipe."""
    pretend(monkeypatch, installed=True)
    monkeypatch.setattr(
        assemble_model, "load_model", lambda *args, **kwargs: pytest.fail("weights were read")
    )
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))
    arguments = toy.recipe(tmp_path, model__quantization="nf4", model__lora__rank="2")
    assert main(["train", *arguments]) == 2
    line = next(line for line in capfd.readouterr().err.splitlines() if line.startswith("error:"))
    assert "model.quantization: nf4 needs an NVIDIA GPU, but this run is on cpu. Leave it out." in line


@pytest.mark.parametrize(
    ("sharded", "builtin", "said"),
    [(True, False, "cannot be spread over ranks by FSDP2"), (False, True, "a built-in model has no stored")],
)
def test_what_cannot_be_quantised_is_refused(
    sharded: bool, builtin: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, installed=True)
    quantize.check_can_quantize("nf4", GPU, is_sharded=False, is_builtin=False)
    with pytest.raises(RecipeError, match=said) as caught:
        quantize.check_can_quantize("nf4", GPU, is_sharded=sharded, is_builtin=builtin)
    assert str(caught.value).startswith("model.quantization: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "compute"),
    [
        ({}, torch.float32),
        ({"model__dtype": "bfloat16"}, torch.bfloat16),
        ({"model__autocast": "bfloat16"}, torch.bfloat16),
    ],
)
def test_a_recipe_asks_the_library_for_what_it_says(
    changes: dict[str, str], compute: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4-bit NormalFloat with quantised scales, turned into the dtype that the run computes in."""
    asked: dict[str, Any] = {}

    def load(path: str, **settings: Any) -> Any:
        asked.update(settings)
        return toy.llama(dtype=torch.float32)

    monkeypatch.setattr(assemble_model, "load_model", load)
    assemble_model.policy_of(Start.of(recipe_of(tmp_path, model__lora__rank="2", **changes)))
    settings = asked["quantization"]
    assert settings.quantization_method() == "nf4" and settings.bnb_4bit_use_double_quant
    assert settings.bnb_4bit_compute_dtype == compute
    assert quantize.loading_config("int8", compute).quantization_method() == "llm_int8"


def test_a_checkpoint_that_is_stored_quantised_needs_an_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise norms and embeddings alone would be trained, without a word."""
    stored = toy.llama(dtype=torch.float32)
    stored.is_quantized = True
    monkeypatch.setattr(assemble_model, "load_model", lambda *args, **kwargs: stored)
    path, *overrides = toy.recipe(tmp_path)
    with pytest.raises(ModelError, match=r"model.path: .* stores its weights quantised"):
        assemble_model.policy_of(Start.of(load_recipe(path, overrides)))
    assemble_model.policy_of(Start.of(load_recipe(path, [*overrides, "model.lora.rank=2"])))


# --- with the package, whose layers also compute on a CPU ------------------------------------------------


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """Write a Llama whose layers are wide enough for blocks of 64 weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=toy.VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "wide")
    return tmp_path / "wide"


def adapted(folder: Path, kind: str) -> Any:
    """Load the model quantised, and put a fresh adapter on every linear layer but the head."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    model = load_model(
        str(folder),
        dtype=torch.float32,
        key="model.path",
        quantization=quantize.loading_config(kind, torch.float32),
    )
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False  # a CPU's own layout, which serves no training
    torch.manual_seed(1)
    return peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    )


@needs_package
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_are_trained_on_quantised_weights(
    kind: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed equals separate, the reference is the same quantised weights, and only the adapter moves."""
    from bitsandbytes.autograd import _functions

    # on a CPU int8 layers in training mode would multiply in floating point; on a GPU they never do
    monkeypatch.setattr(_functions, "MatMul8bitFp", _functions.MatMul8bitLt)
    policy = Policy(adapted(model_folder, kind))
    # int8 rounds inputs to 8 bits, a row's own scale apart: 1e-2 of a log-prob of about 5
    assert policy.self_check(tolerance=1e-3 if kind == "nf4" else 0.1) >= 0
    frozen = {n: p.detach().clone() for n, p in policy.model.named_parameters() if not p.requires_grad}
    data = toy.table(8)
    trainer = Trainer(
        policy,
        build_loss({"name": "dpo"}),
        PlannedSteps(toy.plan(data, per_step=4), data),
        num_steps=4,
        reference=AdapterOffReference(policy, is_start=True),
        engine=Engine(cpu=True),
    )
    before = {name: p.detach().clone() for name, p in trainer.parameters.items()}
    losses = [result.sums.values["loss"].item() / result.units for result in trainer]
    assert (
        trainer.identity is not None
        and trainer.identity < 1e-6
        and losses[0] == pytest.approx(0.693147, abs=1e-5)
    )
    assert all("lora_" in name and p.dtype == torch.float32 for name, p in trainer.parameters.items())
    assert all(not torch.equal(before[name], p) for name, p in trainer.parameters.items())
    assert all(torch.equal(frozen[n], p) for n, p in policy.model.named_parameters() if n in frozen)
    assert policy.describe()["weights"].startswith("14 Linear")
    # embedding and head 61 * 64 each, 2 layers of (64 + 32 + 32 + 64) * 64 + 3 * 64 * 128, 5 norms of 64
    whole = 2 * 61 * 64 + 2 * (192 * 64 + 3 * 64 * 128) + 5 * 64
    assert total_size(p for n, p in policy.model.named_parameters() if "lora_" not in n) == whole


@needs_package
@pytest.mark.filterwarnings("ignore")
def test_the_adapter_is_saved_without_the_weights_under_it(model_folder: Path, tmp_path: Path) -> None:
    policy = Policy(adapted(model_folder, "nf4"))
    assemble_model.save_model(policy, policy.model, toy.tokenizer(), tmp_path / "out")
    assert (tmp_path / "out" / "adapter_model.safetensors").stat().st_size < 100_000
    assert not list((tmp_path / "out").glob("model*.safetensors"))


@needs_package
@pytest.mark.filterwarnings("ignore")
def test_a_quantised_head_is_refused(model_folder: Path) -> None:
    """Log-probs are read from the head's own weight, which 4 bits do not hold."""
    import bitsandbytes

    model = adapted(model_folder, "nf4").get_base_model()
    model.lm_head = bitsandbytes.nn.Linear4bit(64, toy.VOCABULARY, bias=False)
    with pytest.raises(ModelError, match=r"its head is a bitsandbytes\.nn\.modules\.Linear4bit"):
        Policy(model)


@needs_package
@pytest.mark.filterwarnings("ignore")
def test_compiled_layers_take_quantised_weights(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefopt.policy import compiling

    monkeypatch.setattr(compiling, "COMPILER", "aot_eager")
    batch = pack(toy.groups(3))
    plain, compiled = (Policy(adapted(model_folder, "nf4"), compile_for=size) for size in (None, 128))
    torch.testing.assert_close(compiled(batch).tokens, plain(batch).tokens, rtol=1e-5, atol=1e-5)
