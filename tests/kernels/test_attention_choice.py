"""Which attention back-end ``auto`` takes, and the reasons it gives."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attention_cases import FORESTS, draw
from torch import Tensor

from prefopt.errors import RecipeError
from prefopt.kernels import tree_attention
from prefopt.kernels.footprint import Footprint
from prefopt.kernels.prefix_attention import BACKENDS
from prefopt.kernels.prefix_attention.backends import ELSEWHERE, FASTEST_ON_GPUS
from prefopt.kernels.prefix_attention.choice import (
    BackendChoice,
    choose_backend,
    common_dtype,
    footprint_of,
    machine_of,
    obstacle,
    problem_of,
    resolve_backend,
)
from prefopt.kernels.prefix_attention.footprint import AttentionCall
from prefopt.kernels.prefix_attention.spec import AttentionProblem, Backend, Machine

H200 = Machine("cuda", (9, 0))
LLAMA = AttentionProblem(torch.bfloat16, 128, 128, gathered=1.5)


def test_auto_asks_back_ends_of_the_table_and_ends_with_one_that_always_serves() -> None:
    assert set(FASTEST_ON_GPUS) <= set(BACKENDS)
    assert all(BACKENDS[name].footprint is not None for name in (*FASTEST_ON_GPUS, ELSEWHERE))
    assert (
        BACKENDS[FASTEST_ON_GPUS[-1]].obstacle is BACKENDS[ELSEWHERE].obstacle is BACKENDS["dense"].obstacle
    )


def test_a_pair_of_a_llama_on_a_gpu_is_gathered() -> None:
    assert choose_backend(LLAMA, H200) == BackendChoice("varlen")
    assert choose_backend(replace(LLAMA, dtype=torch.float16), Machine("cuda", (8, 6))) == BackendChoice(
        "varlen"
    )


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"has_softcap": True}, "varlen has no softcap of scores"),
        ({"has_sinks": True}, "varlen has no attention sinks"),
        ({"dtype": torch.float32}, "varlen computes in half precision only, not in float32"),
        ({"width": 192}, "varlen needs heads of one size but keys have 192 and values 128"),
        (
            {"width": 100, "value_width": 100},
            "varlen needs a head size that is a multiple of 8 up to 256, not 100",
        ),
        (
            {"width": 512, "value_width": 512},
            "varlen needs a head size that is a multiple of 8 up to 256, not 512",
        ),
        ({"gathered": 12.3}, "varlen would copy 12 keys per token"),
    ],
)
def test_what_flash_attention_cannot_do_goes_to_flex(changes: dict[str, object], why: str) -> None:
    """Gemma 2, GPT-OSS, single precision, DeepSeek's two widths, odd and very wide heads, deep trees."""
    assert choose_backend(replace(LLAMA, **changes), H200) == BackendChoice("flex", why)  # type: ignore[arg-type]


def test_a_deep_tree_may_be_gathered_if_asked_for_by_name() -> None:
    """The limit on copies is one of ``auto`` alone."""
    deep = replace(LLAMA, gathered=12.3)
    assert resolve_backend("varlen", deep, H200) == BackendChoice("varlen")


@pytest.mark.parametrize(
    ("machine", "why"),
    [
        (Machine("cuda", (7, 5)), "varlen needs compute capability 8.0 but this GPU has 7.5"),
        (Machine("cuda", (9, 0), is_rocm=True), "varlen runs on NVIDIA GPUs only, not under ROCm"),
        (
            Machine("cuda", (9, 0), gaps=(("varlen", "needs X"), ("flex", "needs Y"))),
            "varlen needs X, flex needs Y",
        ),
    ],
)
def test_where_neither_runs_segments_serve(machine: Machine, why: str) -> None:
    """They are right on any device; the reason names both."""
    choice = choose_backend(LLAMA, machine)
    assert choice.name == "segments" and choice.why.startswith(why)


def test_float64_and_narrow_heads_stay_with_segments() -> None:
    for problem in (
        replace(LLAMA, dtype=torch.float64),
        replace(LLAMA, width=8, value_width=8, has_sinks=True),
    ):
        assert choose_backend(problem, H200).name == "segments"


def test_an_older_gpu_attends_in_float16_by_flex() -> None:
    """FlexAttention needs 7.0 for float16 and 8.0 for bfloat16."""
    turing = Machine("cuda", (7, 5))
    assert choose_backend(replace(LLAMA, dtype=torch.float16), turing).name == "flex"
    assert choose_backend(LLAMA, turing).name == "segments"


def test_widths_whose_backward_some_gpus_lack() -> None:
    wide = replace(LLAMA, width=200, value_width=200)
    assert obstacle("varlen", wide, H200) is None
    assert (
        obstacle("varlen", wide, Machine("cuda", (8, 9)))
        == "has no backward for a head size of 200 on this GPU"
    )
    assert obstacle("varlen", replace(LLAMA, width=256, value_width=256), Machine("cuda", (8, 9))) is None


@pytest.mark.parametrize("device", ["cpu", "mps", "xpu"])
def test_elsewhere_it_is_segments_without_more_ado(device: str) -> None:
    assert choose_backend(LLAMA, Machine(device)) == BackendChoice("segments")


@pytest.mark.parametrize("name", ["varlen", "flex"])
def test_a_name_that_cannot_run_here_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve_backend(name, LLAMA, Machine("cpu"), "model.attention:")
    assert str(caught.value) == f"model.attention: '{name}' runs on NVIDIA GPUs only, not on cpu. Use 'auto'."
    with pytest.raises(RecipeError, match=r"'flux' does not exist.*segments, dense, varlen, flex"):
        resolve_backend("flux", LLAMA, H200)


def test_a_call_is_described_by_its_tensors() -> None:
    """Widths 8 and 6; the dtype is the widest, or autocast's, but never less than float64."""
    query, key, value = draw(FORESTS["pair"], dv=6)
    found = problem_of(query, key, value, FORESTS["pair"], window=None, softcap=1.0, sinks=None)
    assert found == AttentionProblem(torch.float64, 8, 6, has_softcap=True)
    half = [part.bfloat16() for part in (query, key, value)]
    assert common_dtype(half[0].float(), half[1], half[2]) == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert common_dtype(half[0].float(), half[1], half[2]) == torch.bfloat16
        assert common_dtype(query, key, value) == torch.float64
    assert machine_of(query.device) == Machine("cpu")


def test_a_back_end_is_all_that_the_table_says_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One entry is enough for the choice by name, the call and the plan of memory."""

    def zeros(query: Tensor, key: Tensor, value: Tensor, *_: object) -> Tensor:
        return value.new_zeros(1, query.shape[2], query.shape[1], value.shape[3])

    def on_narrow_heads(problem: AttentionProblem, machine: Machine) -> str | None:
        return None if problem.width <= 8 else f"serves heads up to 8, not {problem.width}"

    new = Backend("new", zeros, lambda call: Footprint(call.num_tokens, 0, 0), obstacle=on_narrow_heads)
    monkeypatch.setitem(BACKENDS, "new", new)
    query, key, value = (part.detach() for part in draw(FORESTS["pair"]))
    assert not tree_attention(query, key, value, FORESTS["pair"], scaling=1.0, impl="new").any()
    with pytest.raises(RecipeError, match=r"'new' serves heads up to 8, not 128\. Use 'auto'\."):
        resolve_backend("new", LLAMA, H200)
    call = AttentionCall(FORESTS["pair"], 4, 2, 8, 8, 8)
    assert footprint_of("new", call) == Footprint(12, 0, 0)
    monkeypatch.setitem(BACKENDS, "new", replace(new, footprint=None))
    with pytest.raises(
        RecipeError, match=r"^model\.attention: the memory of 'new' is not planned\. Use 'auto'\.$"
    ):
        footprint_of("new", call, "model.attention:")
