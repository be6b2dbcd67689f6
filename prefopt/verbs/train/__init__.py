"""The verb ``train``: from a recipe file to a folder with a trained model.

Each file takes what the one before made: ``load`` the data and its plan, ``build`` the model, its reference and the
trainer, ``folder`` writes down what is run and takes up what a stopped run left, ``loop`` logs, evaluates and saves
between steps, ``save`` writes checkpoints and the final model. ``code`` sees to it that losses of one's own are the
same on all ranks, ``facts`` that they, rows and files are those that a resumed run was started with, before anything
is loaded or written. ``job`` holds the values they hand on.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from prefopt.assemble.data import cache_folder
from prefopt.assemble.fit import filled, loss_of
from prefopt.assemble.loss import BoundLoss
from prefopt.assemble.model import engine_of, quiet_libraries, tokenizer_of
from prefopt.assemble.optim import check_optim
from prefopt.assemble.references import check_references, needed
from prefopt.errors import RecipeError
from prefopt.plugins import blamed
from prefopt.recipe import Recipe, load_recipe
from prefopt.run import resume as resuming
from prefopt.run.digests import FileDigests
from prefopt.run.folder import RunFolder
from prefopt.run.resume import Origin
from prefopt.verbs.progress import Display
from prefopt.verbs.train.build import build
from prefopt.verbs.train.code import check_same_code
from prefopt.verbs.train.facts import WatchedFiles
from prefopt.verbs.train.folder import open_folder
from prefopt.verbs.train.job import Job
from prefopt.verbs.train.load import load
from prefopt.verbs.train.loop import Loop
from prefopt.verbs.train.save import finish

__all__ = ["run", "train"]


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
    quiet_libraries()
    with recipe.located():
        loss = loss_of(recipe)
        with blamed(loss.code):
            return _claim(filled(recipe, loss), loss, resume=resume, overwrite=overwrite)


def _claim(recipe: Recipe, loss: BoundLoss, *, resume: bool, overwrite: bool) -> Path:
    """Take the output folder and the devices, run, and let go of them."""
    folder = RunFolder(Path(recipe.output))
    engine = engine_of(recipe.model)
    try:
        check_same_code(engine, loss.code)
        folder.claim(resume=resume, overwrite=overwrite)
        is_resumed = resume and folder.is_occupied
        engine.barrier()  # nobody writes before everybody has looked
        say = Display(0, is_silent=not engine.is_main).say
        with closing(FileDigests(cache_folder() / "digests")) as digests:
            job = Job(recipe, loss, folder, engine, say, digests)
            return _carry_out(job, is_resumed=is_resumed, overwrite=overwrite)
    finally:
        engine.finish()


def _carry_out(job: Job, *, is_resumed: bool, overwrite: bool) -> Path:
    """Run from data to the final folder."""
    recipe = job.recipe
    job.engine.check_trackers(recipe.track)
    origin = _find_origin(job) if is_resumed else None
    if origin is not None and job.folder.is_finished:
        job.say(f"{job.folder.path}: the run is finished; there is nothing left to do.")
        return job.folder.final
    is_sharded = job.engine.sharding is not None
    check_optim(recipe.optim, job.engine.device, is_sharded=is_sharded)
    files = WatchedFiles(job, origin)
    tokenizer = tokenizer_of(recipe.model)
    check_references(needed(recipe.references, job.loss), tokenizer, is_sharded=is_sharded)
    loaded = load(job, tokenizer, origin)
    built = build(job, loaded, tokenizer, files, origin)
    progress = open_folder(job, loaded, built, origin, overwrite=overwrite)
    Loop(job, loaded, built, progress).run()
    return finish(job, built, progress)


def _find_origin(job: Job) -> Origin:
    origin = resuming.find_origin(job.folder, job.say)
    resuming.compare_recipes(origin, job.recipe.resolved())
    return origin


logging.getLogger("prefopt").addHandler(logging.StreamHandler())
