"""Families of causal models: packed scoring is exact for each, and refused in one line where it cannot be."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import transformers
from attention_cases import PlainOp
from families import EXACT, REFUSED, VOCABULARY
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex
from transformers import PreTrainedModel

import prefopt.kernels.prefix_attention as door
from prefopt.data.packs.pack import pack
from prefopt.errors import ModelError
from prefopt.kernels.prefix_attention import choice
from prefopt.kernels.prefix_attention.flex import attend
from prefopt.policy import Policy, check_supported
from prefopt.types import Preference, TokenizedGroup


def sample() -> TokenizedGroup:
    """A prompt of 14 tokens, longer than every window, and two answers."""
    ids = np.random.default_rng(0).integers(3, VOCABULARY, size=14 + 9 + 8).astype(np.int32)
    return TokenizedGroup(
        prompts=(ids[:14],),
        responses=(ids[14:23], ids[23:]),
        prompt_of=(0, 0),
        preferences=(Preference(0, 1),),
        row_id=0,
        origin="sample",
    )


def plain_logps(model: PreTrainedModel, *runs: np.ndarray) -> Tensor:
    """Score the last run after the others as one ordinary sequence."""
    sequence = torch.from_numpy(np.concatenate(runs).astype(np.int64))[None]
    start = sequence.shape[1] - len(runs[-1])
    scores = model(input_ids=sequence, use_cache=False).logits[0, start - 1 : -1].log_softmax(-1)
    return scores.gather(-1, sequence[0, start:, None]).squeeze(-1)


@torch.no_grad()
@pytest.mark.parametrize("name", EXACT)
def test_exact(name: str) -> None:
    """Both answers equal the model's own logits of separate rows to 1e-5, and context does matter."""
    model, group = EXACT[name].build(), sample()
    prompt, (chosen, rejected) = group.prompts[0], group.responses
    wanted = torch.cat([plain_logps(model, prompt, chosen), plain_logps(model, prompt, rejected)])
    leaking = plain_logps(model, prompt, chosen, rejected)
    # a layout in which the second answer saw the first would fail by at least this much
    assert (leaking - wanted[9:]).abs().max() > 1e-2
    check_supported(model.config)
    policy = Policy(model)
    found = policy(pack([group])).tokens
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert policy.self_check(tolerance=1e-4) <= 1e-4


ON_GPUS = {
    "llama": "varlen",
    "mistral": "varlen",
    "gemma3": "varlen",
    "gemma2": "flex",
    "gpt_oss": "flex",
    "deepseek_v3": "flex",
}


@torch.no_grad()
@pytest.mark.parametrize("name", ON_GPUS)
def test_exact_by_the_back_ends_for_gpus(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows, softcaps, sinks and two widths reach them: over a plain flash attention, and uncompiled."""
    monkeypatch.setattr(choice, "obstacle", lambda name, problem, machine: None)
    monkeypatch.setitem(door.ATTENTIONS, "varlen", partial(door.varlen_attention, op=PlainOp()))
    monkeypatch.setitem(door.ATTENTIONS, "flex", partial(door.flex_attention, scores=attend))
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    policy = Policy(EXACT[name].build(), attention=ON_GPUS[name])
    assert policy.self_check(tolerance=1e-4) <= 1e-4
    assert policy.describe()["attention"].startswith(ON_GPUS[name])


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name: str) -> None:
    """Models that would be scored wrongly never reach training."""
    family, reason = REFUSED[name]
    model = family.build()
    with pytest.raises(ModelError, match=reason) as caught:
        Policy(model).self_check()
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("model: ") and "Choose" in message


@pytest.mark.parametrize("name", ["mamba", "jamba", "qwen3_next", "falcon_h1", "lfm2", "llama4"])
def test_hybrids_are_refused_before_any_weight_is_loaded(name: str) -> None:
    """The configuration alone is enough."""
    family, reason = REFUSED[name]
    kind = getattr(transformers, family.config)
    with pytest.raises(ModelError, match=reason):
        check_supported(kind(**{**family.base, **family.extra}))
