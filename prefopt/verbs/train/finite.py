"""The last look before anything is written: no checkpoint and no final model holds what is not a number."""

from __future__ import annotations

from torch import Tensor

from prefopt.engine.agree import together
from prefopt.errors import NonFiniteError
from prefopt.policy.finite import find_nonfinite
from prefopt.trainer.state import Files
from prefopt.verbs.train.job import Built, Job


def check_finite(job: Job, built: Built, files: Files) -> None:
    """Refuse to write weights or a state of the trainer that are not finite.

    All ranks must call it, and all are refused if one is.

    Args:
        job: has the ranks.
        built: its trained weights are read on every rank, each rank's share.
        files: of the trainer, complete on the first rank.

    Raises:
        NonFiniteError: names the first tensor.
    """
    tensors: list[tuple[str, Tensor]] = [*built.trainer.trained.items()]
    tensors += [(f"{name} ({file})", value) for file, part in files.items() for name, value in part.items()]
    with together(job.engine):
        found = find_nonfinite(tensors)
        if found is not None:
            raise NonFiniteError(
                f"after step {built.trainer.done}: {found}, so nothing is written; what was written before stays. "
                f"Lower optim.lr, or compute in more bits, and start anew with --overwrite."
            )
