"""Where the weights of a run come from, and the digests of all that they are read from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from prefopt import demo
from prefopt.policy.files import Files, adapter_files, model_files
from prefopt.recipe import Model


@dataclass(frozen=True, slots=True)
class WeightSource:
    """A model, an adapter or a template that a recipe names."""

    key: str  # the setting that names it
    path: str  # hub id, local folder or built-in name
    revision: str | None = None
    is_adapter: bool = False
    runs_code: bool = False  # Python files of its repository

    @property
    def is_builtin(self) -> bool:
        """Whether it is made in code, not read from files."""
        return demo.is_builtin(self.path)

    def files(self) -> Files:
        """Find what it is read from, as far as it is on this machine.

        Raises:
            ModelError: there is no such model or adapter.
        """
        assert not self.is_builtin
        if self.is_adapter:
            return adapter_files(self.path, key=self.key)
        if Path(self.path).is_file():
            return Files(None, {Path(self.path).name: Path(self.path)})
        return model_files(self.path, key=self.key, revision=self.revision, runs_code=self.runs_code)


def model_sources(settings: Model) -> Iterator[WeightSource]:
    """Yield the model that is trained, its adapter, and the file of its chat template."""
    yield WeightSource("model.path", settings.path, settings.revision, runs_code=settings.trust_remote_code)
    if settings.adapter is not None:
        yield WeightSource("model.adapter", settings.adapter, is_adapter=True)
    template = settings.chat_template
    if template is not None and _is_file(template):
        yield WeightSource("model.chat_template", template)


def _is_file(text: str) -> bool:
    """Whether a text is the path of a file; a template is too long for one, or holds what none may."""
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        return False


@cache
def builtin_digest(path: str, seed: int) -> str:
    """Return the SHA-256 of every number of a model that is made in code."""
    digest = hashlib.sha256()
    for name, value in demo.build_model(path, seed).state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()
