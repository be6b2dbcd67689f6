"""The full-size step benchmark as a whole: its order, its time, and what is said about it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_cases import FOUR, PACE, TINY, session

from benchmarks import bench_step
from benchmarks.step.full_size import command
from benchmarks.step.full_size import session as sessions
from benchmarks.step.full_size.plot import plot
from benchmarks.step.full_size.report import headline, report, summarise
from benchmarks.step.full_size.session import LATE, Session, StageRun
from benchmarks.step.full_size.stages import LADDER, QUICK_STAGES, STAGES, Stage, trl_changes
from benchmarks.step.models import SMALL
from benchmarks.step.prefopt_contender import Way
from benchmarks.step.rows import Rows
from benchmarks.step.task import Task
from benchmarks.step.trl_contender import TrlWay
from benchmarks.step.workloads import WORKLOADS, uniform


@pytest.fixture(scope="module")
def task() -> Task:
    return session().task(Stage(TINY, FOUR, ()), num_steps=2)


@pytest.mark.slow
def test_the_ladder_leaves_out_what_is_not_there_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the last rung: compiling takes longer than a test may."""
    monkeypatch.setattr(sessions, "LADDER", LADDER[:-1])
    kept: list[int] = []
    stage = Stage(TINY, uniform(8, 4, 4, 2), ("ladder",))
    run = session(replace(PACE, warmup=1, steps=2), keep=lambda record: kept.append(len(record["stages"])))
    run.measure_ceilings()
    run.run_stage(stage)
    (entry,) = run.record["stages"]
    lines = {line["name"]: line for line in entry["contenders"]}
    names = ["padded", "padding-free", "+ prefix sharing", "+ fused head", "+ cached reference"]
    assert list(lines) == names and len(kept) == len(lines)
    assert lines["+ fused head"]["note"].startswith("not available: ")
    # the head stays that of the rung before
    assert lines["+ cached reference"]["way"] == Way("shared", "logits", is_cached=True)
    assert lines["+ cached reference"]["before"] == "+ prefix sharing"
    assert lines["padding-free"]["pairs_per_second"] > 0
    summarise(run.record)
    assert lines["+ prefix sharing"]["summary"]["speedup_limit"] == pytest.approx(
        sum(lines["padding-free"]["step_flops"]) / sum(lines["+ prefix sharing"]["step_flops"])
    )
    text = report(run.record)
    assert "+ fused head: not available" in text and "tiny, 8 + 4 / 4" in text


def test_no_contender_starts_when_the_time_is_up() -> None:
    run = session(replace(PACE, seconds=0.0))
    record = run.run([QUICK_STAGES[0], QUICK_STAGES[1]], None)
    assert [entry["note"] for entry in record["stages"]] == [LATE, LATE]
    assert len(record["ceilings"]) == 1


def test_trl_is_tuned_change_by_change(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grouping and checkpointing are slower here, liger faster, flash absent: the cached runs build on liger."""
    rates = {"sdpa": 5.0, "liger": 7.0, "grouped by length": 4.0, "checkpointing": 6.0}
    asked: list[str] = []

    def add(self: Session, run: StageRun, name: str, way: TrlWay) -> dict[str, Any]:
        asked.append(name)
        if way.attention != "sdpa":
            return {"note": "not available"}
        slow = [rate for part, rate in rates.items() if part in name.split(", ")]
        return {"pairs_per_second": slow[-1] if len(slow) > 1 else 5.0, "note": ""}

    monkeypatch.setattr(Session, "_add", add)
    run = session()
    run._tune_trl(StageRun(Stage(TINY, WORKLOADS["like HH"], ()), task, {}, {}))
    assert run.best_trl == TrlWay(liger=True)
    assert asked[:3] == ["TRL, sdpa", "TRL, sdpa, grouped by length", "TRL, sdpa, liger"]
    assert asked[-2:] == ["TRL, sdpa, liger, precomputed reference", "TRL, sdpa, precomputed reference"]
    assert [name for name, _ in trl_changes(is_uniform=True)] == ["liger", "flash attention", "checkpointing"]


def line(name: str, way: Any, seconds: float, flops: float, **more: Any) -> dict[str, Any]:
    timed = {
        "step_seconds": [seconds] * 3 + [2 * seconds],
        "step_flops": [flops] * 3 + [2 * flops],
        "step_pairs": [4] * 4,
        "step_tokens": [100] * 4,
        "least_flops": 5e10,
        "peak_mib": 2048.0,
        "first_step_seconds": 1.0,
        "check_seconds": 2.0,
        "graphs_while_timed": 0,
        "gaps": {"loss": 0.0, "grad_norm": 0.0},
        "pairs_per_second": 16 / (5 * seconds),
    }
    return {"name": name, "way": way, "note": "", "size": 8, **timed, **more}


@pytest.fixture
def record() -> dict[str, Any]:
    """Four steps, the last with twice the work and time: 5 units of 0.1 s and of 1e10 operations."""
    lines = [
        line("padding-free", Way("padding-free"), 0.2, 1.5e10),
        line("+ prefix sharing", Way(), 0.1, 1e10, before="padding-free"),
        line("TRL, sdpa", TrlWay(), 0.4, 2e10),
        line("TRL, sdpa, liger", TrlWay(liger=True), 0.3, 2e10),
        {"name": "+ compile", "way": Way(compiles=True), "note": LATE},
    ]
    real = {"rows": 4, "prompt_median": 5, "answer_median": 2, "prompt_to_answer": 2.5}
    entry = {"name": "m, w", "model": "m", "realised": real, "sharing_limit": 1.5, "padding": 1.2}
    rate = {"product": "8^3", "product_tflops": 0.2, "copy_tbs": 1.0}
    return {"ceilings": [rate], "float32": {}, "stages": [{**entry, "contenders": lines}]}


def test_summary_sets_steps_against_the_device_and_each_other(record: dict[str, Any]) -> None:
    """5e10 operations in 0.5 s at a rate of 0.2e12: half of it. Sharing: twice as fast where 1.5 is the limit.
    TRL's faster way takes 1.5 s for the 16 pairs that take ours 0.5 s. Time per operation never varies.
    """
    summarise(record)
    said = record["stages"][0]["contenders"][1]["summary"]
    assert said["pairs_per_second"] == pytest.approx(32) and said["tokens_per_second"] == pytest.approx(800)
    assert said["mfu"] == pytest.approx(0.5) and said["of_floor"] == pytest.approx(0.5)
    assert said["speedup"] == pytest.approx(2) and said["speedup_limit"] == pytest.approx(1.5)
    assert said["speedup_over_trl"] == pytest.approx(3) and said["peak_gib"] == 2
    assert said["jitter"] == pytest.approx(0)
    assert record["stages"][0]["fastest_trl"] == {"live": "TRL, sdpa, liger", "cached": None}


def test_report_ends_with_a_line_per_stage(record: dict[str, Any]) -> None:
    summarise(record)
    text = report(record)
    assert f"+ compile: {LATE}" in text
    last = text.splitlines()[-1]
    assert last == headline(record).splitlines()[-1]
    assert last.split() == [
        "m,",
        "w",
        "2.00",
        "133%",
        "-",
        "-",
        "-",
        "32.00",
        "10.67",
        "3.00",
        "50.0%",
        "2.00",
        "2.00",
    ]


def test_plot_draws_what_was_timed(record: dict[str, Any], tmp_path: Path) -> None:
    assert plot(record, tmp_path / "x.png") == "no plot: nothing was timed"
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    summarise(record)
    assert plot(record, tmp_path / "x.png") == str(tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_is_stored_and_its_exit_code_tells_of_failures(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Session, "run", lambda self, stages, small: record)
    words = ["--device", "cpu", "--quick", "--out", str(tmp_path), "--name", "it"]
    assert bench_step.main(words) == 0
    stored = json.loads((tmp_path / "it.json").read_text())
    assert stored["stages"][0]["contenders"][1]["summary"]["speedup"] == pytest.approx(2)
    assert {"settings", "environment", "pace"} <= stored.keys()
    assert "stored in" in capsys.readouterr().out
    record["stages"][0]["contenders"].append({"name": "x", "way": Way(), "note": "failed: no"})
    assert bench_step.main(words) == 1


def test_stages_can_be_chosen() -> None:
    def chosen(*words: str) -> list[Stage]:
        return command._stages(command._parser().parse_args(words))

    assert chosen() == list(STAGES)
    (one,) = chosen("--model", "Qwen3-0.6B", "--workload", "like HH", "--part", "short")
    assert one.name == "Qwen3-0.6B, like HH" and one.parts == ("short",)
    with pytest.raises(SystemExit):
        chosen("--quick", "--model", "Qwen3-0.6B")


def test_rows_are_enough_for_every_stage() -> None:
    for stage in (*STAGES, *QUICK_STAGES):
        count = 15 * stage.workload.pairs_per_step // stage.workload.pairs_per_row
        tokens = max(prompt + sum(owns) for prompt, owns in stage.workload.rows(count))
        assert count * stage.workload.pairs_per_row == 15 * stage.workload.pairs_per_step
        assert tokens <= stage.model.positions


def test_the_cpu_benchmark_keeps_its_own_model() -> None:
    task = Task(Rows([], "", ""), num_steps=1)
    assert task.model is SMALL
    assert (task.config.hidden_size, task.config.num_hidden_layers, task.config.vocab_size) == (256, 4, 8192)
