"""Weights that are not numbers are named by their tensor, in one pass and before anything is scored."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from prefopt.errors import ModelError
from prefopt.policy.finite import find_nonfinite
from prefopt.policy.load import load_adapter, load_model

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (7,), (64, 33), ()], ids=str)
def test_one_place_is_found_wherever_it_is(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    size = math.prod(shape)
    values = [math.nan] if dtype == torch.float8_e4m3fn else [math.nan, math.inf, -math.inf]
    for value in values:
        for at in {0, size // 2, size - 1}:
            flat = torch.randn(size).to(dtype)
            assert find_nonfinite([("a", torch.ones(3)), ("w", flat.view(shape))]) is None
            flat[at] = value
            found = find_nonfinite([("a", torch.ones(3)), ("w", flat.view(shape)), ("none", torch.empty(0))])
            kind = "NaN" if math.isnan(value) else "infinity"
            assert found == f"w holds {kind} at 1 of {size} places"


def test_the_largest_numbers_are_numbers_still() -> None:
    largest = torch.full((1000,), torch.finfo(torch.float32).max)
    assert find_nonfinite([("w", largest), ("v", -largest), ("ids", torch.arange(3))]) is None
    assert find_nonfinite([]) is None


def test_kinds_and_tensors_are_counted() -> None:
    both = torch.tensor([math.nan, math.nan, math.inf, 1.0])
    found = find_nonfinite([("w", both), ("fine", torch.ones(2)), ("v", both)])
    assert found == "w holds NaN at 2 and infinity at 1 of 4 places, and 1 other tensors are not finite"


def spoil(path: Path, name: str, value: float) -> None:
    found = load_file(str(path))
    found[name].view(-1)[3] = value
    save_file(found, str(path), metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_that_is_not_finite_is_refused(name: str, value: float, tmp_path: Path) -> None:
    folder = toy.save_model(tmp_path / "model")
    spoil(folder / "model.safetensors", name, value)
    size = load_file(str(folder / "model.safetensors"))[name].numel()
    kind = "NaN" if math.isnan(value) else "infinity"
    with pytest.raises(ModelError) as caught:
        load_model(str(folder), dtype=torch.float32, key="reference.path")
    assert str(caught.value) == (
        f"reference.path: {name} holds {kind} at 1 of {size} places in '{folder}'. Give a checkpoint whose numbers "
        f"are finite."
    )


def test_numbers_that_the_dtype_cannot_hold_are_refused(tmp_path: Path) -> None:
    """1e38 is a number in bfloat16 and, rounded up from 3.4e38, the largest of float32 is not."""
    folder = toy.save_model(tmp_path / "model")
    spoil(folder / "model.safetensors", "lm_head.weight", torch.finfo(torch.float32).max)
    load_model(str(folder), dtype=torch.float32, key="model.path")
    with pytest.raises(ModelError, match=r"lm_head.weight holds infinity at 1 of 976 places"):
        load_model(str(folder), dtype=torch.bfloat16, key="model.path")


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}],
    ids=["factors", "lengths", "a whole head"],
)
def test_an_adapter_that_is_not_finite_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], **settings)
    get_peft_model(toy.llama(dtype=torch.float32), config).save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    clean = path.read_bytes()
    for name in load_file(str(path)):
        spoil(path, name, math.nan)
        with pytest.raises(ModelError, match=r"^model.adapter: .* holds NaN at 1 of \d+ places in '"):
            load_adapter(toy.llama(dtype=torch.float32), str(tmp_path), key="model.adapter")
        path.write_bytes(clean)


def test_a_tied_weight_is_named_once(tmp_path: Path) -> None:
    model = toy.llama(dtype=torch.float32)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path)
    (name,) = [n for n in load_file(str(tmp_path / "model.safetensors")) if "embed" in n or "lm_head" in n]
    spoil(tmp_path / "model.safetensors", name, math.nan)
    with pytest.raises(
        ModelError, match=r"^model.path: model.embed_tokens.weight holds NaN at 1 of 976 places in"
    ):
        load_model(str(tmp_path), dtype=torch.float32, key="model.path")
