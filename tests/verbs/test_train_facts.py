"""A run goes on with the very files and rows that it was started with, or not at all."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import toy
from broken_runs import crash_after
from lanes import slow_but
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from prefopt.cli import main
from prefopt.run import digests
from prefopt.verbs.train import facts

Edit = Callable[[Path], None]
"""Changes a file in place."""


@contextmanager
def crashing(step: int = 2) -> Iterator[pytest.MonkeyPatch]:
    """Break every run off in the middle of a step."""
    with pytest.MonkeyPatch.context() as patch:
        crash_after(patch, step)
        yield patch


def adapter(folder: Path, seed: int) -> Path:
    """Write an adapter for the small Llama whose factors are both random."""
    torch.manual_seed(seed)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(toy.llama(dtype=torch.float32), config).save_pretrained(folder)
    return folder


KINDS: dict[str, dict[str, str]] = {
    "initial": {"reference": "initial"},
    "cached": {"reference": "cached"},
    "lora": {"model__lora": "{{rank: 2}}"},
    "lora, cached": {"model__lora": "{{rank: 2}}", "reference": "cached"},
    "adapter": {"model__adapter": "{0}/adapter"},
    "adapter, adapter_off": {"model__adapter": "{0}/adapter", "reference": "adapter_off"},
    "moving": {"reference": "{{name: moving, every: 1}}"},
    "path": {"reference": "{{path: {0}/other, adapter: {0}/theirs}}"},
    "path, cached": {"reference": "{{path: {0}/other, adapter: {0}/theirs, cached: true}}"},
    "two": {
        "reference": "[initial, {{path: {0}/other, cached: true}}]",
        "loss": "{{name: dpo, with: [{{name: multi_ref}}]}}",
    },
}
"""Recipes in which model, adapter and reference come from files in different ways."""


class Run:
    """A run that was killed after its second step; ``resume`` goes on."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self.changes = {key: value.format(folder) for key, value in KINDS[kind].items()}
        self.read = {"model"} | {name for name in ("adapter", "other", "theirs") if name in str(self.changes)}
        toy.recipe(folder)
        toy.save_model(folder / "other", seed=3)
        adapter(folder / "adapter", seed=4)
        adapter(folder / "theirs", seed=5)
        with crashing():
            assert self.resume() == 70

    def resume(self, **changes: str) -> int:
        settings = {"train__steps": "3", "train__save_every": "1", **self.changes, **changes}
        return main(["train", *toy.recipe(self.folder, **settings), "--resume"])

    def content(self) -> dict[str, bytes]:
        """Return every file of the output folder."""
        run = self.folder / "run"
        return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def stopped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFOPT_CACHE", str(folder / "cache"))
        # remembered at once, so that what is remembered is put to the test as well
        patch.setattr(digests, "SETTLED", -1)
        yield Run(folder, request.param)


def tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Edit:
    def edit(path: Path) -> None:
        found = load_file(str(path))
        change(found)
        save_file(found, str(path), metadata={"format": "pt"})

    return edit


def number(name: str, at: int) -> Edit:
    """Change one number of one tensor."""

    def change(found: dict[str, torch.Tensor]) -> None:
        found[name].view(-1)[at] += 0.5

    return tensors(change)


def whole(name: str) -> Edit:
    """Change every number of the tensors of a kind."""

    def change(found: dict[str, torch.Tensor]) -> None:
        for key in found:
            if name in key:
                found[key] = found[key] + 0.5

    return tensors(change)


def setting(name: str, value: Any) -> Edit:
    def edit(path: Path) -> None:
        found = json.loads(path.read_text())
        assert found.get(name) != value
        path.write_text(json.dumps({**found, name: value}, indent=2))

    return edit


def text(old: str, new: str) -> Edit:
    def edit(path: Path) -> None:
        before = path.read_text()
        assert old in before
        path.write_text(before.replace(old, new, 1))

    return edit


QUERY = "model.layers.1.self_attn.q_proj.weight"
FACTOR = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"

EDITS: dict[str, tuple[str, Edit]] = {
    "one number in the middle": ("model.safetensors", number(QUERY, 128)),
    "the first number": ("model.safetensors", number(QUERY, 0)),
    "the last number": ("model.safetensors", number(QUERY, -1)),
    "all of q_proj": ("model.safetensors", whole("q_proj")),
    "the head": ("model.safetensors", whole("lm_head")),
    "rms_norm_eps": ("config.json", setting("rms_norm_eps", 1e-2)),
    "rope": (
        "config.json",
        setting("rope_parameters", {"rope_theta": 100.0, "rope_type": "default"}),
    ),
    "hidden_act": ("config.json", setting("hidden_act", "gelu")),
    "tokenizer": ("tokenizer.json", text('"w3"', '"w3x"')),
    "tokenizer_config": ("tokenizer_config.json", setting("model_max_length", 77)),
    "template": ("chat_template.jinja", text("<end>", "<end> ")),
    "a factor": ("adapter_model.safetensors", number(FACTOR, 16)),
    "alpha": ("adapter_config.json", setting("lora_alpha", 99)),
}
"""What decides a number: a file, and a change of it."""

OWNERS = {
    "model": "model.path",
    "other": "reference.path",
    "theirs": "reference.adapter",
    "adapter": "model.adapter",
}


def forged(path: Path, edit: Edit, *, as_copy: bool) -> None:
    """Edit a file and give it its old date, in its place or as a copy."""
    before = path.stat()
    if as_copy:
        copy = path.with_name("copy.tmp")
        shutil.copyfile(path, copy)
        edit(copy)
        os.replace(copy, path)
    else:
        content = path.read_bytes()
        edit(path)
        content, _ = path.read_bytes(), content
        with path.open("r+b") as file:
            file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def cases() -> Iterator[tuple[str, str, str]]:
    for kind, settings in KINDS.items():
        for owner in OWNERS:
            is_read = owner == "model" or f"/{owner}" in str(settings)
            for name, (file, _) in EDITS.items():
                if is_read and ("adapter" in file) == (owner in ("adapter", "theirs")):
                    yield kind, owner, name


DEFAULT = {("path, cached", "other", "one number in the middle")}


@pytest.mark.parametrize(
    ("stopped", "owner", "name"), slow_but(DEFAULT.__contains__, list(cases())), indirect=["stopped"]
)
def test_a_changed_file_is_named_and_nothing_is_touched(
    stopped: Run,
    owner: str,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Refused before any model is loaded or any row read; the date of the file is as it was."""
    file, edit = EDITS[name]
    path, before = stopped.folder / owner / file, stopped.content()
    kept, was = path.read_bytes(), path.stat()
    for name_of in ("load", "build"):
        monkeypatch.setattr(f"prefopt.verbs.train.{name_of}", lambda *_: pytest.fail("went on"))
    time.sleep(0.02)  # beyond the tick of the file system's clock
    try:
        forged(path, edit, as_copy=len(name) % 2 == 0)
        assert stopped.resume() == 5
    finally:
        path.write_bytes(kept)
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    key = "reference.1.path" if owner == "other" and "multi_ref" in str(stopped.changes) else OWNERS[owner]
    old = sha256(kept).hexdigest()[:12]
    assert f"{key}: {file} had the SHA-256 {old}… when the run was started and has " in message
    assert "Restore the file, or start anew with --overwrite." in message
    assert stopped.content() == before


@pytest.mark.parametrize("stopped", slow_but(["path, cached"], list(KINDS)), indirect=True)
def test_what_decides_no_number_refuses_nothing(stopped: Run, tmp_path: Path) -> None:
    """Files touched, what nobody reads changed, the model moved behind a link; the run is put back afterwards."""
    model, run = stopped.folder / "model", stopped.folder / "run"
    shutil.copytree(run, tmp_path / "run")
    for path in stopped.folder.rglob("*"):
        if run not in path.parents:
            os.utime(path)
    (model / "README.md").write_text("changed")
    (model / "generation_config.json").write_text('{"temperature": 0.1, "do_sample": true}')
    (model / "optimizer.pt").write_bytes(b"no pickle")
    moved = tmp_path / "moved"
    shutil.move(model, moved)
    model.symlink_to(moved)
    try:
        assert stopped.resume() == 0
    finally:
        model.unlink()
        shutil.move(moved, model)
        shutil.rmtree(run)
        shutil.copytree(tmp_path / "run", run)


@pytest.mark.slow
@pytest.mark.parametrize("stopped", ["path, cached"], indirect=True)
@pytest.mark.parametrize("owner", ["model", "other", "theirs"])
def test_files_may_lie_elsewhere_if_they_are_the_same(
    stopped: Run, owner: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under another path in the recipe, the same files go on and others do not."""
    run, moved = stopped.folder / "run", tmp_path / "moved"
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(stopped.folder / owner, moved)
    path = next(moved.glob("*.safetensors"))
    kept = path.read_bytes()
    tensors(lambda found: next(iter(found.values())).view(-1)[0].add_(0.5))(path)
    changes = {
        "model__path" if owner == "model" else f"reference__{'path' if owner == 'other' else 'adapter'}": str(
            moved
        )
    }
    try:
        assert stopped.resume(**changes) == 5
        assert f"{OWNERS[owner]}: {path.name} had the SHA-256" in capsys.readouterr().err
        path.write_bytes(kept)
        assert stopped.resume(**changes) == 0
    finally:
        shutil.rmtree(run)
        shutil.copytree(tmp_path / "run", run)


@pytest.mark.slow
@pytest.mark.parametrize("stopped", ["initial", "adapter"], indirect=True)
def test_what_has_no_files_to_compare_stays_a_setting(
    stopped: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    has_adapter = "model__adapter" in stopped.changes
    new = "null" if has_adapter else str(stopped.folder / "adapter")
    assert stopped.resume(model__adapter=new) == 5
    assert "the run was started with other settings (model.adapter: " in capsys.readouterr().err
    assert stopped.resume(model__path="builtin:tiny") == 5


@pytest.mark.slow
@pytest.mark.parametrize("stopped", ["initial"], indirect=True)
@pytest.mark.parametrize("change", ["a row", "the order", "one row less", "the template"])
def test_other_rows_are_refused_and_nothing_is_touched(
    stopped: Run, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stopped.folder / "rows.jsonl"
    kept, before = path.read_text(), stopped.content()
    rows = kept.splitlines(keepends=True)
    changed = {
        "a row": [rows[0].replace("w", "w1 w", 1), *rows[1:]],
        "the order": [rows[1], rows[0], *rows[2:]],
        "one row less": rows[:-1],
        "the template": rows,
    }[change]
    template = {"model__chat_template": json.dumps(toy.TEMPLATE.replace("<end>", "<end> "))}
    try:
        path.write_text("".join(changed))
        assert stopped.resume(**(template if change == "the template" else {})) == 5
    finally:
        path.write_text(kept)
    assert ("rows was" in capsys.readouterr().err) == (change != "the template")
    assert stopped.content() == before


def test_a_template_in_a_file_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it adds stands where no row has anything, so that no token of this run differs."""
    path = tmp_path / "chat.jinja"
    path.write_text(toy.TEMPLATE)
    arguments = toy.recipe(tmp_path, model__chat_template=str(path), train__steps="3", train__save_every="1")
    with crashing():
        assert main(["train", *arguments]) == 70
    path.write_text(toy.TEMPLATE + "{% if tools %}tools{% endif %}")
    assert main(["train", *arguments, "--resume"]) == 5
    assert "model.chat_template: chat.jinja had the SHA-256" in capsys.readouterr().err


COMMITS = ["a" * 40, "b" * 40]


def publish(hub: Path, name: str, folder: Path, commit: str) -> None:
    """Lay a folder into the hub's cache as that commit of a repository, which ``main`` then is at."""
    home = hub / f"models--{name.replace('/', '--')}"
    for path in folder.iterdir():
        blob = home / "blobs" / sha256(path.read_bytes()).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(path.read_bytes())
        link = home / "snapshots" / commit / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    (home / "refs").mkdir(exist_ok=True)
    (home / "refs" / "main").write_text(commit)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "hub"


def start_from_hub(folder: Path, hub: Path, **changes: str) -> Callable[..., int]:
    """Run two steps of a model of the hub, and return what goes on."""
    toy.recipe(folder)
    publish(hub, "me/toy", folder / "model", COMMITS[0])
    settings = {"model__path": "me/toy", "train__steps": "3", "train__save_every": "1", **changes}

    def go(**more: str) -> int:
        return main(["train", *toy.recipe(folder, **settings, **more), "--resume"])

    with crashing():
        assert go() == 70
    stored = json.loads((folder / "run" / "run.json").read_text())["facts"]["files"]
    assert stored["model.path"]["commit"] == COMMITS[0]
    return go


def test_a_new_commit_is_noticed_and_the_old_one_can_be_named(
    tmp_path: Path, hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    go = start_from_hub(tmp_path, hub)
    toy.save_model(tmp_path / "model", seed=1)
    publish(hub, "me/toy", tmp_path / "model", COMMITS[1])
    assert go() == 5
    message = capsys.readouterr().err
    assert "model.path: model.safetensors had the SHA-256" in message
    assert f"(commit {COMMITS[0]} then, {COMMITS[1]} now)" in message
    assert f"Set model.revision={COMMITS[0]}, or start anew with --overwrite." in message
    assert go(model__revision=COMMITS[1]) == 5
    assert "model.path: model.safetensors had the SHA-256" in capsys.readouterr().err
    assert go(model__revision=COMMITS[0]) == 0


@pytest.mark.slow
def test_a_new_commit_of_a_cached_reference_is_noticed(
    tmp_path: Path, hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy.save_model(tmp_path / "other", seed=3)
    publish(hub, "me/other", tmp_path / "other", COMMITS[0])
    go = start_from_hub(tmp_path, hub, reference="{path: me/other, cached: true}")
    toy.save_model(tmp_path / "other", seed=4)
    publish(hub, "me/other", tmp_path / "other", COMMITS[1])
    assert go() == 5
    assert f"Set reference.revision={COMMITS[0]}, " in capsys.readouterr().err


@pytest.mark.slow
def test_a_new_commit_with_the_same_files_is_said(
    tmp_path: Path, hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    go = start_from_hub(tmp_path, hub)
    (tmp_path / "model" / "README.md").write_text("new words")
    publish(hub, "me/toy", tmp_path / "model", COMMITS[1])
    assert go() == 0
    said = (
        f"model.path: the repository is at commit {COMMITS[1]}, and was at {COMMITS[0]}, with the same files"
    )
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_new_commit_whose_weights_are_not_here_is_not_fetched(
    tmp_path: Path, hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    go = start_from_hub(tmp_path, hub)
    (tmp_path / "model" / "model.safetensors").unlink()
    publish(hub, "me/toy", tmp_path / "model", COMMITS[1])
    assert go() == 5
    assert "model.safetensors had the SHA-256" in capsys.readouterr().err


@pytest.mark.slow
def test_a_file_that_changes_while_the_run_starts_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = toy.recipe(tmp_path, train__steps="1")
    build = import_module("prefopt.verbs.train.build")
    real = build.policy_of

    def changed(*args: Any) -> Any:
        found = real(*args)
        number(QUERY, 5)(tmp_path / "model" / "model.safetensors")
        return found

    monkeypatch.setattr(build, "policy_of", changed)
    assert main(["train", *arguments]) == 2
    assert "model.path: model.safetensors changed while it was read. Start again." in capsys.readouterr().err


def test_a_run_of_an_older_version_goes_on_and_says_what_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = toy.recipe(tmp_path, train__steps="3", train__save_every="1")
    with crashing() as patch:
        patch.setattr(
            facts.WatchedFiles, "settle", lambda self: {"frozen weights": "12", "reference weights": "34"}
        )
        assert main(["train", *arguments]) == 70
    capsys.readouterr()
    assert main(["train", *arguments, "--resume"]) == 0
    said = "the run was started by an older version, which kept no digests of model files, so they are not compared"
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_other_versions_of_packages_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = toy.recipe(tmp_path, train__steps="3", train__save_every="1")
    with crashing() as patch:
        patch.setattr(facts, "_versions", lambda: {"torch": "1.0", "transformers": "2.0", "gone": "3"})
        assert main(["train", *arguments]) == 70
    capsys.readouterr()
    assert main(["train", *arguments, "--resume"]) == 0
    said = capsys.readouterr().err
    assert "other versions than the run was started with, which may round otherwise: torch 1.0 -> " in said
    assert ", transformers 2.0 -> " in said


def test_a_built_in_model_is_known_by_its_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As if another version of torch drew others from the same seed."""
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))
    toy.recipe(tmp_path)
    data = "{path: 'builtin:sort', split: test}"
    changes = {
        "model": "{path: 'builtin:tiny', lora: {rank: 2}}",
        "data": data,
        "batch__tokens_per_batch": "500",
    }
    arguments = toy.recipe(tmp_path, **changes, train__steps="3", train__save_every="1")
    with crashing():
        assert main(["train", *arguments]) == 70
    monkeypatch.setattr(facts, "builtin_digest", lambda path, seed: "0" * 64)
    assert main(["train", *arguments, "--resume"]) == 5
    assert "model.path: weights had the SHA-256" in capsys.readouterr().err
