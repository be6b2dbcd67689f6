"""Write checkpoints, and the final folder in Hugging Face form."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree

from torch import Tensor

from prefopt.assemble import model as assemble_model
from prefopt.run import checkpoint
from prefopt.run.log import RunState
from prefopt.trainer.state import state_files, write_files
from prefopt.verbs.train.finite import check_finite
from prefopt.verbs.train.job import Built, Job


def save(job: Job, built: Built, progress: RunState, done: int) -> None:
    """Write a checkpoint after ``done`` steps, and delete those that nobody asked to keep."""
    files = state_files(built.trainer)
    check_finite(job, built, files)
    weights = job.engine.weights(built.policy.model)

    def write(folder: Path) -> None:
        _save_model(job, built, folder / "model", weights)
        write_files(folder, files, built.trainer)

    if job.engine.is_main:
        state = {**progress.state(), "recipe": job.recipe.resolved(), "facts": built.facts}
        checkpoint.save(job.folder.checkpoints, done, write, state)
        best = progress.best_step if job.keeps_best else None
        protect = {checkpoint.checkpoint_name(step) for step in (done, best) if step is not None}
        checkpoint.prune(job.folder.checkpoints, job.recipe.train.keep, frozenset(protect))
    job.engine.barrier()


def finish(job: Job, built: Built, progress: RunState) -> Path:
    """Write the final folder: the last weights, or those of the best evaluation where the recipe wants them."""
    best = progress.best_step if job.keeps_best else None
    if best is None:
        check_finite(job, built, {})
    weights = job.engine.weights(built.policy.model) if best is None else None
    if job.engine.is_main:
        if best is not None:
            source = job.folder.checkpoints / checkpoint.checkpoint_name(best)
            checkpoint.verify(source)
            job.folder.replace_final(lambda to: copytree(source / "model", to, dirs_exist_ok=True))
        else:
            job.folder.replace_final(lambda to: _save_model(job, built, to, weights))
        job.folder.finish()
        which = f"the best evaluation, after step {best}" if best is not None else "the last step"
        job.say(f"{job.folder.final}: the model of {which}")
        if progress.skipped:
            job.say(f"{progress.skipped} step(s) were not finite and left out")
    job.engine.barrier()
    return job.folder.final


def _save_model(job: Job, built: Built, folder: Path, weights: dict[str, Tensor] | None) -> None:
    model = job.engine.unwrap(built.policy.model)
    assemble_model.save_model(built.policy, model, built.tokenizer, folder, weights)
