"""What decides a run's numbers besides its recipe: its rows and the files of its models, held against the start."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from prefopt.assemble.data import Data
from prefopt.assemble.references import needed, reference_sources
from prefopt.assemble.sources import WeightSource, builtin_digest, model_sources
from prefopt.engine.agree import is_same, together
from prefopt.errors import ModelError
from prefopt.run import resume
from prefopt.run.resume import FILES, VERSIONS, Origin, WeightFiles
from prefopt.verbs.train.code import code_facts
from prefopt.verbs.train.job import Job

_PACKAGES = ("prefopt", "torch", "transformers", "peft", "bitsandbytes")


def facts_of_rows(data: Data, origin: Origin | None) -> dict[str, Any]:
    """Return the digests of all that is trained and evaluated on.

    Raises:
        ResumeError: they are not those that the run was started with.
    """
    facts = {"rows": resume.rows_digest(data.train), "evaluation rows": resume.rows_digest(data.held_out)}
    if origin is not None:
        resume.compare_facts(origin, facts)
    return facts


class WatchedFiles:
    """The files that models, adapters and templates are read from, watched from before that until after.

    Code of the user's own, which is imported by then, is held against the start of the run besides.

    Hashing begins at once, on threads. A run that is resumed waits for it, so that it is refused before anything is
    loaded; a new one goes on meanwhile.

    Args:
        job: names them, and has the threads.
        origin: of a resumed run.

    Raises:
        ModelError: something that the recipe names is not there.
        ResumeError: something is not as it was when the run was started.
    """

    def __init__(self, job: Job, origin: Origin | None) -> None:
        self.job, self.origin = job, origin
        self._code = code_facts(job.loss.code)
        entries = needed(job.recipe.references, job.loss)
        self.sources = [*model_sources(job.recipe.model), *reference_sources(entries)]
        with together(job.engine):
            self._begun = self._begin()
            if origin is not None:
                resume.compare_facts(origin, self._code)
                self._compare(origin, _done(self._begun), is_complete=False)
        for line in self._lines():
            job.say(line)

    def settle(self) -> dict[str, Any]:
        """Return what was read, once all of it was.

        Raises:
            ModelError: files changed while they were read, or are not the same on all ranks.
            ResumeError: something is not as it was when the run was started.
        """
        with together(self.job.engine):
            found = _done(self._begin())
            if self.origin is not None:
                self._compare(self.origin, found, is_complete=True)
            _check_still(_done(self._begun), found)
        if not is_same(self.job.engine, _number(found)):
            raise ModelError(
                "model: its files, or those of the adapter or the reference, are not the same on all ranks. Give "
                "every machine the same ones."
            )
        return {**self._code, FILES: found, VERSIONS: _versions()}

    def _begin(self) -> dict[str, _Begun]:
        return {source.key: self._begin_one(source) for source in self.sources}

    def _begin_one(self, source: WeightSource) -> _Begun:
        if source.is_builtin:
            return _Begun(None, {"weights": partial(builtin_digest, source.path, self.job.recipe.seed)})
        files = source.files()
        start = self.job.digests.start
        return _Begun(files.commit, {name: start(path).result for name, path in files.paths.items()})

    def _compare(self, origin: Origin, found: Mapping[str, WeightFiles], *, is_complete: bool) -> None:
        for key, each in found.items():
            resume.compare_files(origin, key, each, is_complete=is_complete)

    def _lines(self) -> list[str]:
        if self.origin is None:
            return []
        moved = resume.moved_commits(self.origin, _done(self._begun))
        return [*moved, *resume.other_versions(self.origin, _versions())]


@dataclass(frozen=True, slots=True)
class _Begun:
    """The files of one source, with the digests that are under way."""

    commit: str | None
    digests: Mapping[str, Callable[[], str]]


def _done(begun: Mapping[str, _Begun]) -> dict[str, WeightFiles]:
    """Wait for all digests."""
    return {
        key: {"commit": each.commit, "files": {name: wait() for name, wait in each.digests.items()}}
        for key, each in begun.items()
    }


def _check_still(before: Mapping[str, WeightFiles], after: Mapping[str, WeightFiles]) -> None:
    """Refuse what changed while it was read; what was fetched from the hub meanwhile is new, not changed."""
    for key, then in before.items():
        now = after[key]
        changed = [name for name, digest in then["files"].items() if now["files"].get(name) != digest]
        if changed or then["commit"] != now["commit"]:
            what = changed[0] if changed else f"the commit, {then['commit']} -> {now['commit']},"
            raise ModelError(f"{key}: {what} changed while it was read. Start again.")


def _number(found: Mapping[str, WeightFiles]) -> int:
    text = json.dumps(found, sort_keys=True)
    return int.from_bytes(blake2b(text.encode(), digest_size=7).digest(), "little")


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
