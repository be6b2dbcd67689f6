"""The benchmark of head log-probs: wrong numbers are never timed, right ones are timed by everybody's turn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import bench_linear_logp
from benchmarks.bench_linear_logp import main
from benchmarks.logp.measure import Line, measure
from benchmarks.logp.plot import plot
from benchmarks.logp.problem import draw, truth
from benchmarks.logp.providers import PROVIDERS, Provider
from benchmarks.shared import results
from benchmarks.shared.ops import Limits, total_ms

SHAPE = (12, 8, 30)
EAGER = PROVIDERS["torch eager"]


def test_truth_is_that_of_autograd() -> None:
    """The formulas of the gate against full logits in float64."""
    inputs = draw(SHAPE, torch.float32, "cpu", 0, None)
    hidden, weight = (part.double().requires_grad_() for part in (inputs.hidden, inputs.weight))
    logps = EAGER.score(hidden, weight, inputs.targets)
    grads = torch.autograd.grad(logps, (hidden, weight), inputs.upstream.to(logps.dtype))
    expected = truth(inputs, wants_weight=True)
    for found, value in zip((logps, *grads), expected, strict=True):
        assert value is not None
        # the eager path rounds its log-probs to float32
        torch.testing.assert_close(found.double(), value, rtol=1e-5, atol=1e-5)


def double_weight_gradient(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return EAGER.score(hidden, 2 * weight - weight.detach(), targets)


class CompilationError(Exception):
    """Derived from Exception alone, as Triton's errors are."""


def refuse(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    raise CompilationError("no such device\nand more")


def test_a_wrong_or_failing_op_is_not_timed() -> None:
    """Right log-probs with a doubled gradient, and log-probs off by 0.01, are both refused with the reason."""
    others = [
        EAGER,
        Provider("doubled", double_weight_gradient),
        Provider("shifted", lambda h, w, t: EAGER.score(h, w, t) + 0.01),
        Provider("broken", refuse),
        replace(EAGER, name="absent", package="no_such_package"),
        replace(EAGER, name="elsewhere", devices=("cuda",)),
    ]
    lines = {
        line.provider: line
        for line in measure(SHAPE, "trained", torch.float32, "cpu", others, Limits(2, 9.0), 1.0)
    }
    assert lines["doubled"].note == "wrong: a gradient is off by 1 > 0.001"
    assert lines["shifted"].note == "wrong: a log-prob is off by 0.01 > 0.001 nats"
    assert lines["broken"].note == "failed: CompilationError: no such device"
    assert lines["absent"].note == "no_such_package is not installed"
    assert lines["elsewhere"].note == "does not run on cpu"
    assert all(not line.forward_ms for name, line in lines.items() if name != "torch eager")
    right = lines["torch eager"]
    assert right.note == "" and len(right.forward_ms) == len(right.backward_ms) == 2
    # 4 products of 2 * 12 * 8 * 30 operations
    assert right.tflops == pytest.approx(4 * 2 * 12 * 8 * 30 / (total_ms(right) * 1e9))
    assert right.repeats_bits


def test_a_run_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every task, ours and eager, as JSON and as the table on the screen."""
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(bench_linear_logp, "plot", lambda lines, path: f"a plot of {len(lines)}")
    names = ["prefopt", "prefopt cached", "torch eager"]
    words = ["--device", "cpu", "--shape", "12,8,30", "--turns", "2", "--threads", "1", "--only", *names]
    assert main(words) == 0
    record = json.loads((tmp_path / "linear_logp_cpu.json").read_text())
    timed = [(line["task"], line["provider"]) for line in record["lines"] if line["forward_ms"]]
    assert timed == [
        *(("trained", name) for name in names),
        *(("frozen", name) for name in names),
        ("no_grad", "prefopt"),
        ("no_grad", "torch eager"),
    ]
    assert "N=12 H=8 V=30, frozen" in capsys.readouterr().out


def test_plot_draws_what_was_timed(tmp_path: Path) -> None:
    assert (
        plot([Line("a", "trained", SHAPE, note="failed")], tmp_path / "x.png") == "no plot: nothing was timed"
    )
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    lines = [Line(name, "trained", SHAPE, forward_ms=[1.0, 2.0], backward_ms=[2.0, 3.0]) for name in "ab"]
    assert plot(lines, tmp_path / "x.png") == str(tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
