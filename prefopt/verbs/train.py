"""The verb ``train``: from a recipe file to a folder with a trained model."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

from torch import Tensor

from prefopt import assemble as build
from prefopt.assemble import model as build_model
from prefopt.assemble import reference as build_reference
from prefopt.assemble.loss import BoundLoss
from prefopt.data.packs.plan import Plan
from prefopt.data.tokens.table import GroupTable
from prefopt.engine import Engine
from prefopt.errors import CorruptError, NonFiniteError, RecipeError
from prefopt.policy import Policy
from prefopt.recipe import Recipe, load_recipe
from prefopt.reference import MovingReference, Reference, models_of
from prefopt.run import checkpoint, resume
from prefopt.run.folder import RunFolder
from prefopt.run.log import RunState, write_out
from prefopt.run.resume import Origin
from prefopt.run.stopping import INTERRUPTED, Stopped, stop_requests
from prefopt.trainer import StepResult, Trainer
from prefopt.trainer.arrange import UNIT_NAMES
from prefopt.trainer.optim import total_size
from prefopt.trainer.state import restore, state_files, write_files
from prefopt.verbs.progress import Display


def run(
    recipe: str | Path, overrides: Sequence[str] = (), *, resume: bool = False, overwrite: bool = False
) -> Path:
    """Train as the recipe says and return the folder of the final model.

    Args:
        recipe: path of the recipe.
        overrides: ``key.path=value`` each.
        resume: continue the run in the output folder; start one if there is none.
        overwrite: delete the run in the output folder first.

    Raises:
        PrefoptError: anything a user can mend, with its exit code.
        Stopped: the run was interrupted (130) or pre-empted (75) after a checkpoint.
    """
    return train(load_recipe(recipe, overrides), resume=resume, overwrite=overwrite)


def train(recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Train as a loaded recipe says; see ``run``."""
    if resume and overwrite:
        raise RecipeError("--resume continues what --overwrite deletes. Give one of them.")
    build_model.quiet_libraries()
    loss = build.loss_of(recipe)
    recipe = build.filled(recipe, loss)
    folder = RunFolder(Path(recipe.output))
    engine = build.engine_of(recipe)
    try:
        folder.claim(resume=resume, overwrite=overwrite)
        is_resumed = resume and folder.is_occupied
        engine.barrier()  # nobody writes before everybody has looked
        return _Run(recipe, loss, folder, engine, resume=is_resumed, overwrite=overwrite).go()
    finally:
        engine.finish()


class _Run:
    """One call of ``train``: holds the pieces and the order in which they act."""

    def __init__(
        self,
        recipe: Recipe,
        loss: BoundLoss,
        folder: RunFolder,
        engine: Engine,
        *,
        resume: bool,
        overwrite: bool,
    ) -> None:
        self.recipe, self.loss, self.folder, self.engine = recipe, loss, folder, engine
        self.progress = RunState()
        self.display = Display(0, is_silent=not engine.is_main)
        self.origin: Origin | None = None
        self.graphs = 0  # compiled so far
        self.is_resumed, self.overwrite = resume, overwrite

    def go(self) -> Path:
        """Run from data to the final folder."""
        self.engine.check_trackers(self.recipe.track)
        if self.is_resumed:
            self.origin = resume.find_origin(self.folder, self.display.say)
            resume.compare_recipes(self.origin, self.recipe)
            if self.folder.is_finished:
                self.display.say(f"{self.folder.path}: the run is finished; there is nothing left to do.")
                return self.folder.final
        self.tokenizer = build_model.tokenizer_of(self.recipe)
        build_reference.check_references(self.recipe, self.loss, self.tokenizer)
        self._load_data()
        self._build()
        self._open_folder()
        self._loop()
        return self._finish()

    # -- before the first step ---------------------------------------------------------------------

    def _load_data(self) -> None:
        with self.engine.main_first():
            self.data = build.data_of(self.recipe, self.tokenizer, self.loss)
        reports = [report for report in (self.data.report, self.data.eval_report) if report is not None]
        if self.engine.is_main:
            for line in (line for report in reports for line in report.lines()):
                self.display.say(line)
            bad = [row for report in reports for row in report.bad]
            if bad:
                replace(self.data.report, bad=bad).write_quarantine(self.folder.quarantine)
        for report in reports:
            report.enforce(self.recipe.rows.max_bad)
        self.plan = build.plan_of(self.recipe, self.data.train, self.loss, self.engine.world)
        self.num_steps = build.num_steps(self.recipe, self.plan)
        self.eval_plan = None
        if self.data.held_out is not None:
            self.eval_plan = build.eval_plan_of(self.recipe, self.data.held_out, self.loss, self.engine.world)

    def _gather_facts(self, reference: Reference | None) -> dict[str, Any]:
        """Return what must be the same when the run is resumed, besides the recipe."""
        trained = self.trainer.parameters
        frozen = self.engine.unwrap(self.policy.model).named_parameters()
        # one that moves is part of the checkpoint, which has a digest of its own
        kept = [] if isinstance(reference, MovingReference) else models_of(reference)
        other = ((f"{i}.{n}", p) for i, policy in enumerate(kept) for n, p in policy.model.named_parameters())
        return {
            "rows": resume.rows_digest(self.data.train),
            "evaluation rows": resume.rows_digest(self.data.held_out),
            "frozen weights": resume.weights_digest((n, p) for n, p in frozen if n not in trained),
            "reference weights": resume.weights_digest(other),
        }

    def _open_folder(self) -> None:
        """Write down what is run, now that everything it needs was found; only here is anything deleted."""
        if self.origin is not None:
            resume.compare_facts(self.origin, self.facts)
            self._take_up(self.origin)
        if self.engine.is_main:
            if self.overwrite:
                self.folder.clear(keep=(self.folder.quarantine.name,))
            self.folder.cut_metrics(self.trainer.start_step)
            self.folder.start(self.recipe.to_yaml(), {"facts": self.facts})
            reports = {"train": self.data.report, "eval": self.data.eval_report}
            found = {name: report.to_json() for name, report in reports.items() if report is not None}
            checkpoint.write_json(self.folder.data_report, found)
            config = _flat(self.recipe.resolved())
            self.engine.start_trackers(self.recipe.track, str(self.folder.trackers), config)
        self.engine.barrier()

    def _take_up(self, origin: Origin) -> None:
        """Take over what the checkpoint remembers; what is newer and damaged is set aside."""
        if origin.checkpoint is None:
            self.display.say(f"{self.folder.path}: no checkpoint yet; starting from the first step.")
            return
        self.progress.load(dict(origin.state))
        self.display.say(f"resuming after step {origin.step} of {self.num_steps}")
        best = self.progress.best_step
        if best is not None and self._keeps_best and not self._is_whole(best):
            self.display.say(
                f"the best checkpoint so far, after step {best}, is lost; the search for it starts anew"
            )
            self.progress.best = self.progress.best_step = None
        if self.engine.is_main:
            checkpoint.set_aside_after(self.folder.checkpoints, origin.step)

    @property
    def _keeps_best(self) -> bool:
        return self.recipe.eval is not None and self.recipe.eval.best

    def _is_whole(self, step: int) -> bool:
        try:
            checkpoint.verify(self.folder.checkpoints / checkpoint.checkpoint_name(step))
        except CorruptError:
            return False
        return True

    def _build(self) -> None:
        build_model.check_quantization(self.recipe, self.engine)
        saved = self.origin.checkpoint if self.origin is not None else None
        weights = saved / "model" if saved is not None else None
        self.policy = build_model.policy_of(self.recipe, weights)
        self._check_fits(self.policy)
        self.policy.model = self.engine.place(self.policy.model)
        self._check_scores(self.policy)
        reference = build_reference.reference_of(
            self.recipe,
            self.policy,
            self.engine,
            self.loss,
            self._score_reference,
            is_resumed=saved is not None,
        )
        self.policies = [self.policy, *models_of(reference)]
        for policy in self.policies[1:]:
            self._check_fits(policy)
        masks = build_reference.masks_of(self.recipe, self.loss, reference)
        self.trainer = Trainer(
            self.policy,
            self.loss,
            self.plan,
            self.data.train,
            num_steps=self.num_steps,
            reference=reference,
            optim=build.optim_of(self.recipe),
            engine=self.engine,
            masks=masks,
            share_prompts=self.recipe.batch.share_prompts,
            on_nonfinite=self.recipe.train.on_nonfinite,
            start_step=self.origin.step if self.origin is not None else 0,
            seed=self.recipe.seed,
        )
        if saved is not None:
            restore(self.trainer, saved)
        self.facts = self._gather_facts(reference)
        self._announce(reference)

    def _check_scores(self, policy: Policy) -> None:
        """Prove packed scoring in the arithmetic that training uses."""
        try:
            with self.engine.autocast():
                policy.self_check()
        except RecipeError as error:
            raise self.recipe.located(error) from None

    def _check_fits(self, policy: Policy) -> None:
        """Refuse data with tokens or lengths that a model has no table entry for."""
        tables = [table for table in (self.data.train, self.data.held_out) if table is not None]
        largest = max(int(ids.max()) for table in tables for ids in (table.prompt_ids, table.response_ids))
        longest = max(int(table.sizes(True).longest.max()) for table in tables)
        policy.check_fits(largest, longest)

    def _score_reference(self, reference: Reference) -> Any:
        tables = [(self.data.train, self._whole(self.data.train))]
        if self.data.held_out is not None:
            tables.append((self.data.held_out, self._whole(self.data.held_out)))
        tokens = sum(int(plan.sizes.tokens.sum()) for _, plan in tables)
        with Display(
            tokens // self.engine.world, what="reference, tokens", is_silent=not self.engine.is_main
        ) as bar:
            return build.score_all(
                reference, self.loss, tables, self.engine, self.recipe.batch.share_prompts, bar.advance
            )

    def _whole(self, table: GroupTable) -> Plan:
        return build.eval_plan_of(self.recipe, table, self.loss, self.engine.world)

    def _announce(self, reference: Reference | None) -> None:
        """Say what is about to happen, with the choices that were made automatically."""
        model = self.engine.unwrap(self.policy.model)
        trained, total = total_size(self.trainer.parameters.values()), total_size(model.parameters())
        first = self.plan.step(0)
        unit = UNIT_NAMES[self.loss.contract.structure]
        choices = ", ".join(f"{key} {value}" for key, value in self.policy.describe().items())
        lines = [
            f"loss {self.loss.describe()}, divided by all {unit} of a step",
            f"reference {build_reference.describe(self.recipe) if reference is not None else 'not used'}",
            f"model {self.recipe.model.path}, {trained:,} of {total:,} parameters trained, {choices}",
            f"{len(self.data.train):,} groups, {self.num_steps:,} steps of {self.trainer.units(first.totals)} {unit}",
            f"{self.engine.describe()}, {len(first.ranks[0])} pack(s) per rank in the first step",
        ]
        for line in lines:
            self.display.say(line)

    # -- the steps ---------------------------------------------------------------------------------

    def _loop(self) -> None:
        start = self.trainer.start_step
        self.display = Display(self.num_steps, start=start, is_silent=not self.engine.is_main)
        with self.display, stop_requests(self.trainer.request):
            # a run that was killed between its last checkpoint and its end only has that end to do
            if start >= self.num_steps or self._has_lost_patience():
                return
            try:
                for result in self.trainer:
                    self._say_identity(result)
                    self._say_graphs(result.index + 1)
                    if self._after(result):
                        break
            except NonFiniteError:
                if self.progress.pending:
                    self._flush()
                raise

    def _say_identity(self, result: StepResult) -> None:
        if result.index != 0 or self.trainer.reference is None:
            return
        if self.trainer.identity is not None:
            self.display.say(f"step-0 identity holds: the loss is off by {self.trainer.identity:.1e} at most")
        else:
            self.display.say("step-0 identity does not apply: the reference is not where training starts")

    def _say_graphs(self, done: int) -> None:
        """Say when layers were compiled, which takes long and should not happen after the first steps."""
        found = sum(policy.compiled.num_graphs for policy in self.policies if policy.compiled is not None)
        if found > self.graphs:
            self.display.say(f"model.compile: {found - self.graphs} graph(s) compiled up to step {done}")
            self.graphs = found

    def _after(self, result: StepResult) -> bool:
        """Log, evaluate, save and decide whether to stop after one step."""
        done = result.index + 1
        is_last = done == self.num_steps
        self.progress.pending.append(result)
        self.progress.skipped += result.skipped
        is_eval = self.recipe.eval is not None and (is_last or done % self.recipe.eval.every == 0)
        every = self.recipe.train.save_every
        is_save = is_last or bool(every and done % every == 0) or bool(self.trainer.requested)
        if is_save or is_eval or done % self.recipe.train.log_every == 0:
            self._flush()
        is_best = self._evaluate(done) if is_eval else False
        has_lost_patience = is_eval and self._has_lost_patience()
        if is_save or has_lost_patience or (is_best and self.recipe.eval and self.recipe.eval.best):
            self._save(done)
        if self.trainer.requested and not is_last:
            self._stop(done)
        if has_lost_patience and not is_last:
            self.display.say(
                f"stopping after step {done}: no better {self._metric} in {self.progress.evaluations_without_best} "
                f"evaluations; the best was {self.progress.best:.6g} after step {self.progress.best_step}"
            )
        return has_lost_patience

    def _flush(self) -> None:
        structure = self.loss.contract.structure
        for line in write_out(self.progress.take(), structure, self.engine, self.folder):
            if line["step"] % self.recipe.train.log_every == 0 or line["step"] == self.num_steps:
                self.display.metrics(line["step"], line)
                self.engine.track({k: v for k, v in line.items() if k != "step"}, line["step"])

    @property
    def _metric(self) -> str:
        assert self.recipe.eval is not None
        return f"eval/{self.recipe.eval.metric}"

    def _evaluate(self, done: int) -> bool:
        """Evaluate on the held-out rows; return whether this was the best so far."""
        assert self.eval_plan is not None and self.data.held_out is not None
        values = self.trainer.evaluate(self.eval_plan, self.data.held_out)
        line = {f"eval/{name}": value for name, value in values.items()}
        if self.engine.is_main:
            self.folder.add_metrics({"step": done, **line})
            self.engine.track(line, done)
            shown = "  ".join(f"{k} {v:.4g}" for k, v in line.items() if "logps" not in k)
            self.display.say(f"evaluation after step {done}: {shown}")
        value, best = line.get(self._metric, math.nan), self.progress.best
        sign = -1 if self._metric == "eval/loss" else 1
        is_best = math.isfinite(value) and (best is None or sign * value > sign * best)
        if is_best:
            self.progress.best, self.progress.best_step = value, done
            self.progress.evaluations_without_best = 0
        else:
            self.progress.evaluations_without_best += 1
        return is_best

    def _has_lost_patience(self) -> bool:
        patience = self.recipe.eval.patience if self.recipe.eval is not None else None
        return patience is not None and self.progress.evaluations_without_best >= patience

    def _save(self, done: int) -> None:
        weights = self.engine.weights(self.policy.model)
        files = state_files(self.trainer)

        def write(folder: Path) -> None:
            self._save_model(folder / "model", weights)
            write_files(folder, files)

        if self.engine.is_main:
            state = {**self.progress.state(), "recipe": self.recipe.resolved(), "facts": self.facts}
            checkpoint.save(self.folder.checkpoints, done, write, state)
            best = self.progress.best_step if self._keeps_best else None
            protect = {checkpoint.checkpoint_name(step) for step in (done, best) if step is not None}
            checkpoint.prune(self.folder.checkpoints, self.recipe.train.keep, frozenset(protect))
        self.engine.barrier()

    def _save_model(self, folder: Path, weights: dict[str, Tensor] | None) -> None:
        model = self.engine.unwrap(self.policy.model)
        build_model.save_model(self.policy, model, self.tokenizer, folder, weights)

    def _stop(self, done: int) -> None:
        again = "Continue with --resume."
        if self.trainer.requested & INTERRUPTED:
            raise Stopped(f"interrupted after step {done}; the checkpoint is written. {again}", 130)
        raise Stopped(f"asked to end after step {done}; the checkpoint is written. {again}", 75)

    def _finish(self) -> Path:
        """Write the final folder in Hugging Face form."""
        best = self.progress.best_step
        takes_best = self._keeps_best and best is not None
        weights = None if takes_best else self.engine.weights(self.policy.model)
        if self.engine.is_main:
            if takes_best:
                assert best is not None
                source = self.folder.checkpoints / checkpoint.checkpoint_name(best)
                checkpoint.verify(source)
                self.folder.replace_final(lambda to: copytree(source / "model", to, dirs_exist_ok=True))
            else:
                self.folder.replace_final(lambda to: self._save_model(to, weights))
            self.folder.finish()
            which = f"the best evaluation, after step {best}" if takes_best else "the last step"
            self.display.say(f"{self.folder.final}: the model of {which}")
            if self.progress.skipped:
                self.display.say(f"{self.progress.skipped} step(s) were not finite and left out")
        self.engine.barrier()
        return self.folder.final


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {
            k: v
            for key, child in value.items()
            for k, v in _flat(child, f"{path}.{key}" if path else key).items()
        }
    return {path: value if isinstance(value, (int, float, bool)) else str(value)}


logging.getLogger("prefopt").addHandler(logging.StreamHandler())
