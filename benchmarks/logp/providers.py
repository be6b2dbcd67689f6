"""Who takes part in the benchmark of head log-probs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.logp.problem import TASKS
from benchmarks.shared.environment import is_installed
from prefopt.kernels import token_logps

Score = Callable[[Tensor, Tensor, Tensor], Tensor]
"""hidden [N, H], weight [V, H], targets [N] -> log-probs [N] that take any upstream gradient per row."""


@dataclass(frozen=True, slots=True)
class Provider:
    """One way to the same numbers."""

    name: str
    score: Score
    tasks: tuple[str, ...] = tuple(TASKS)
    devices: tuple[str, ...] = ("cpu", "cuda")
    package: str = "torch"

    def absence(self, device: str, task: str) -> str | None:
        """Say why it does not take part, if it does not."""
        if task not in self.tasks:
            return "does not do this"
        if device not in self.devices:
            return f"does not run on {device}"
        return None if is_installed(self.package) else f"{self.package} is not installed"


def _ours(hidden: Tensor, weight: Tensor, targets: Tensor, impl: str = "auto", mode: str = "auto") -> Tensor:
    return token_logps(hidden, weight, targets, impl=impl, mode=mode).logps


def _eager(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = F.linear(hidden, weight).float()
    return torch.log_softmax(logits, dim=-1).gather(-1, targets[:, None]).squeeze(-1)


@cache
def _compiled() -> Score:
    compiled: Score = torch.compile(_eager, dynamic=False)
    return compiled


def _compile(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return _compiled()(hidden, weight, targets)


def _selective(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from trl.trainer.utils import selective_log_softmax

    logps: Tensor = selective_log_softmax(F.linear(hidden, weight), targets)
    return logps


def _trl(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    size: int = _CHUNKED_LOGPROB_CHUNK_SIZE
    op: Any = ChunkedLogProbFunction
    logps: Tensor = op.apply(hidden, weight, None, targets, 1.0, size, None, 1.0, ())[0]
    return logps


def _liger(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    # its default adds the weight's gradient up in the weight's own precision
    found: Any = liger_fused_linear_cross_entropy(
        hidden, weight, targets, reduction="none", accum_dtype=torch.float32
    )
    loss: Tensor = found[0] if isinstance(found, tuple) else found
    return -loss


def _cce(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    # without the filter, which leaves small gradients out
    loss: Tensor = linear_cross_entropy(hidden, weight, targets, reduction="none", filter_eps=None)
    return -loss


def _checkpointed(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from torch.utils.checkpoint import checkpoint

    rows: Any = zip(torch.split(hidden, 256), torch.split(targets, 256), strict=True)
    return torch.cat([checkpoint(_eager, h, weight, t, use_reentrant=False) for h, t in rows])


ON_GPU = ("cuda",)
PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider("prefopt", _ours),
        Provider("prefopt recompute", partial(_ours, mode="recompute"), ("trained", "frozen")),
        Provider("prefopt cached", partial(_ours, mode="cached"), ("trained", "frozen")),
        Provider("prefopt chunked", partial(_ours, impl="chunked"), devices=ON_GPU),
        Provider("torch eager", _eager),
        Provider("torch compile", _compile),
        Provider("torch checkpointed", _checkpointed, ("trained", "frozen")),
        Provider("TRL", _trl, package="trl"),
        Provider("TRL full logits", _selective, package="trl"),
        Provider("Liger", _liger, devices=ON_GPU, package="liger_kernel"),
        Provider("cut cross-entropy", _cce, devices=ON_GPU, package="cut_cross_entropy"),
    )
}
