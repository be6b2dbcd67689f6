"""The output folder of a run: what lies where, who may write into it, and its metrics file.

recipe.yaml       the resolved recipe              metrics.jsonl    one line per optimizer step
run.json          digest of the data, finished?    data_report.json, quarantine.jsonl
checkpoints/      step-000123/…                    final/           the trained model
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from prefopt.errors import RecipeError
from prefopt.run.checkpoint import StorageError, checkpoints, read_json, write_json

_OURS = (
    "recipe.yaml",
    "run.json",
    "metrics.jsonl",
    "data_report.json",
    "quarantine.jsonl",
    "checkpoints",
    "final",
    "trackers",
)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def run(self) -> Path:
        return self.path / "run.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def data_report(self) -> Path:
        return self.path / "data_report.json"

    @property
    def quarantine(self) -> Path:
        return self.path / "quarantine.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def final(self) -> Path:
        return self.path / "final"

    @property
    def trackers(self) -> Path:
        return self.path / "trackers"

    @property
    def is_occupied(self) -> bool:
        """Whether a run was started here."""
        return self.run.exists() or self.final.exists() or bool(checkpoints(self.checkpoints))

    @property
    def is_finished(self) -> bool:
        """Whether the run that lies here came to its end."""
        return self.final.is_dir() and self.run.exists() and bool(read_json(self.run).get("finished"))

    def claim(self, *, resume: bool, overwrite: bool) -> None:
        """Make sure that starting here loses nothing that the user did not give up.

        Raises:
            RecipeError: the folder holds a run and neither flag was given, or it is no folder.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecipeError(
                f"output: {self.path} cannot be made a folder ({error.strerror or error}). Give another one."
            ) from None
        if self.is_occupied and not resume and not overwrite:
            raise RecipeError(
                f"output: {self.path} already holds a run. Add --resume to continue it, --overwrite to delete "
                f"it and start anew, or choose another folder with output=…"
            )

    def clear(self, keep: Sequence[str] = ()) -> None:
        """Delete what a run writes except ``keep``, and nothing else that may lie in the folder."""
        for name in (name for name in _OURS if name not in keep):
            path = self.path / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def start(self, recipe_yaml: str, facts: Mapping[str, Any]) -> None:
        """Write down what is run here, before the first step."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.recipe.write_text(recipe_yaml, encoding="utf-8")
        write_json(self.run, {**facts, "finished": False})

    def finish(self) -> None:
        """Mark the run as finished."""
        write_json(self.run, {**read_json(self.run), "finished": True})

    def cut_metrics(self, step: int) -> None:
        """Drop metric lines after ``step``, and a last line that was not written to its end."""
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue
        temporary = self.metrics.with_name(".metrics.jsonl.new")
        temporary.write_text("".join(kept), encoding="utf-8")
        os.replace(temporary, self.metrics)

    def add_metrics(self, line: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``; what is not finite is written as null, as JSON has no NaN."""
        line = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def replace_final(self, write: Callable[[Path], object]) -> Path:
        """Write the final model under another name first, so that ``final`` is always whole."""
        temporary = self.path / ".final.new"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            write(temporary)
            shutil.rmtree(self.final, ignore_errors=True)
            os.rename(temporary, self.final)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise StorageError(
                f"{self.final}: the model could not be written ({error}). Free space, then run with --resume."
            ) from None
        return self.final
