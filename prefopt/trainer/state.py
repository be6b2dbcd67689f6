"""What a checkpoint holds of a trainer beside the model: a safetensors file for each part that it has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from prefopt.errors import ResumeError
from prefopt.optim import kept, load_state_tensors, name_of, state_tensors
from prefopt.trainer import Trainer

Files = Mapping[str, Mapping[str, Tensor]]


def state_files(trainer: Trainer) -> Files:
    """Return the tensors of every file by the file's name without its ending.

    All ranks must call it; only what the first rank gets is complete.
    """
    files: dict[str, Mapping[str, Tensor]] = {
        "optimizer": state_tensors(trainer.optimizer, trainer.trained, keep=trainer.engine.is_main)
    }
    if trainer.masks is not None:
        files["masks"] = trainer.masks.state_dict()
    if trainer.contract.carried:
        files["carried"] = trainer.objective.carried
    if trainer.reference is not None and trainer.reference.moves and trainer.engine.is_main:
        files["reference"] = trainer.reference.state()
    return files


def write_files(folder: Path, files: Files, trainer: Trainer) -> None:
    """Write what ``state_files`` returned, and which optimizer ``trainer`` has."""
    notes = {"optimizer": {"name": name_of(trainer.settings, trainer.optimizer)}}
    for name, tensors in files.items():
        save_file(dict(tensors), str(folder / f"{name}.safetensors"), metadata=notes.get(name))


def restore(trainer: Trainer, checkpoint: Path) -> None:
    """Put a trainer back to where it was when ``state_files`` was called.

    Raises:
        ResumeError: the checkpoint lacks a part that the trainer has, or holds that of another one.
    """
    _restore_optimizer(trainer, checkpoint)
    if trainer.masks is not None:
        trainer.masks.load_state_dict(_read(checkpoint, "masks"))
    if trainer.contract.carried:
        carried = _read(checkpoint, "carried")
        if carried and carried.keys() != set(trainer.contract.carried):
            raise _lacks(checkpoint, "carried", f"{', '.join(trainer.contract.carried)}")
        trainer.objective.carried = {name: value.to(trainer.engine.device) for name, value in carried.items()}
    if trainer.reference is not None and trainer.reference.moves:
        trainer.reference.load_state(_read(checkpoint, "reference"))


def _restore_optimizer(trainer: Trainer, checkpoint: Path) -> None:
    flat = _read(checkpoint, "optimizer")
    with safe_open(checkpoint / "optimizer.safetensors", framework="pt") as file:
        written = (file.metadata() or {}).get("name")
    name, optimizer = name_of(trainer.settings, trainer.optimizer), trainer.settings.optimizer
    if written != name:
        raise ResumeError(
            f"{checkpoint}: it holds the state of the optimizer {written}, but this run trains with {name}. "
            f"Resume with {written}, or start anew."
        )
    model = trainer.engine.unwrap(trainer.policy.model)
    states = kept(optimizer, model, trainer.masks) if isinstance(optimizer, str) else None
    load_state_tensors(trainer.optimizer, trainer.trained, flat, states)


def _read(checkpoint: Path, name: str) -> dict[str, Tensor]:
    path = checkpoint / f"{name}.safetensors"
    if not path.is_file():
        raise _lacks(checkpoint, name, path.name)
    return load_file(str(path))


def _lacks(checkpoint: Path, name: str, what: str) -> ResumeError:
    return ResumeError(
        f"{checkpoint}: the checkpoint does not hold {what}, without which {_MEANINGS[name]} cannot go on. "
        f"Resume with the version that wrote it, or start anew with --overwrite."
    )


_MEANINGS = {
    "optimizer": "the optimizer",
    "masks": "the learned token weights",
    "carried": "the averages that the loss carries from step to step",
    "reference": "the moving reference",
}
