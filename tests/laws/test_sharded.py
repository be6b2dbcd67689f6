"""Weights spread over two ranks give the log-probs, gradients and steps of whole weights on one."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import gloo
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("peft")

HERE = Path(__file__).resolve().parent
Ranks = list[dict[str, torch.Tensor]]


def run(engine: str, folder: Path) -> Ranks:
    """Run every case of one engine in one launch and return what each rank wrote."""
    gloo.launch(2, [HERE / "sharded_worker.py", folder, engine], timeout=240)
    return [load_file(str(folder / f"rank{rank}.safetensors")) for rank in range(2)]


def agree(ranks: Ranks, cases: int, *, rtol: float, weights: float) -> None:
    """Compare every value of every case on every rank with the run alone.

    Args:
        ranks: what the ranks wrote.
        cases: how many there must be.
        rtol: of log-probs, metrics and gradients, relative to the largest entry of each.
        weights: absolute difference after one step of AdamW, which turns a tiny gradient's rounding
            into a share of the learning rate, 1e-3.
    """
    for rank in ranks:
        names = {key.partition("/")[0] for key in rank}
        assert len(names) == cases
        for name in names:
            found = {key for key in rank if key.startswith(f"{name}/alone/")}
            assert sum("/grad/" in key for key in found) == sum("/weight/" in key for key in found) >= 6
            for key in found:
                expected, got = rank[key], rank[key.replace("/alone/", "/spread/")]
                scale = expected.abs().max()
                atol = weights if "/weight/" in key else rtol * float(scale)
                torch.testing.assert_close(got, expected, rtol=0, atol=atol, msg=lambda m, k=key: f"{k}: {m}")
                assert "/grad/" not in key or scale > 0, f"{key} would agree whatever was computed"
            assert rank[f"{name}/self_check"] < 1e-5


def test_fsdp2_equals_one_process(tmp_path: Path) -> None:
    """Head in the root group, apart, tied; checkpointing; LoRA beside a frozen head and on it.

    float64: only the order of sums differs, so 1e-9.
    """
    ranks = run("fsdp", tmp_path)
    agree(ranks, 6, rtol=1e-9, weights=1e-9)
    first, second = (
        {k: v.tolist() for k, v in rank.items() if k.endswith(("packs", "ghosts"))} for rank in ranks
    )
    assert first["head apart/packs"] != second["head apart/packs"]
    assert (first["head apart/ghosts"], second["head apart/ghosts"]) == ([0, 1], [0, 0])


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")
def test_deepspeed_equals_one_process(tmp_path: Path) -> None:
    """ZeRO-3 with the same models, ZeRO-1 with one, after a first try of the step that was dropped.

    float32, in which DeepSpeed adds gradients up: 1e-5.
    """
    agree(run("zero", tmp_path), 6, rtol=1e-5, weights=1e-4)
