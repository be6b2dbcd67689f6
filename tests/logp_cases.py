"""Cases for the log-prob op, and what dense float64 arithmetic says about them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prefopt.types import STATS


@dataclass(frozen=True)
class Case:
    """One shape: M targets over N hidden rows of width D, vocabulary V, low-rank width r."""

    m: int
    n: int
    d: int
    v: int
    bias: bool = False
    scale: float = 1.0
    softcap: float | None = None
    r: int = 0
    repeats: bool = False
    ignored: int = 0

    def __str__(self) -> str:
        extra = "".join(f"-{name}" for name in ("bias", "softcap", "repeats") if getattr(self, name))
        return f"{self.m}x{self.n}x{self.d}x{self.v}{extra}-r{self.r}-s{self.scale}-i{self.ignored}"


CASES = [
    Case(1, 1, 1, 1),
    Case(1, 1, 1, 2, bias=True),
    Case(1, 1, 7, 33),
    Case(3, 3, 1, 5, scale=0.25),
    Case(7, 7, 5, 11, bias=True),
    Case(8, 8, 16, 64),
    Case(9, 4, 5, 11, repeats=True),
    Case(16, 2, 3, 17, repeats=True, bias=True),
    Case(17, 17, 33, 65, softcap=3.0),
    Case(31, 31, 13, 127, scale=-0.5, softcap=30.0),
    Case(33, 33, 8, 1, bias=True, scale=2.0),
    Case(5, 5, 8, 2, softcap=0.5, bias=True),
    Case(63, 63, 12, 1000),
    Case(64, 64, 4, 257, ignored=9),
    Case(65, 20, 4, 129, repeats=True, ignored=30),
    Case(10, 10, 6, 31, r=1),
    Case(11, 11, 6, 31, r=4, bias=True, scale=0.7, softcap=5.0),
    Case(40, 13, 9, 50, r=3, repeats=True, ignored=11),
    Case(4, 4, 3, 9, ignored=4),
    Case(6, 6, 3, 9, ignored=5, bias=True),
    Case(100, 100, 3, 7, scale=3.0),
    Case(127, 5, 31, 19, repeats=True, r=2, bias=True, softcap=8.0, scale=1.5, ignored=60),
    Case(129, 129, 2, 515, bias=True, ignored=1),
]


def draw(case: Case, dtype: torch.dtype = torch.float64) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
    """Return the differentiable inputs by name, the targets and the row index."""

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64).to(dtype).requires_grad_()

    leaves = {"hidden": leaf(case.n, case.d), "weight": leaf(case.v, case.d)}
    if case.bias:
        leaves["bias"] = leaf(case.v)
    if case.r:
        leaves |= {"x2": leaf(case.n, case.r), "w2": leaf(case.v, case.r)}
    targets = torch.randint(0, case.v, (case.m,))
    targets[torch.randperm(case.m)[: case.ignored]] = -100
    return leaves, targets, torch.randint(0, case.n, (case.m,)) if case.repeats else None


def dense(case: Case, leaves: dict[str, Tensor], targets: Tensor, rows: Tensor | None) -> dict[str, Tensor]:
    """Work everything out again from probabilities, row by row, in float64."""
    wide = {name: leaf.double() for name, leaf in leaves.items()}
    at = torch.arange(case.n) if rows is None else rows
    out: dict[str, list[Tensor]] = {name: [] for name in ("logps", *STATS)}
    for row, target in zip(at.tolist(), targets.tolist(), strict=True):
        if target == -100:
            for values in out.values():
                values.append(torch.zeros((), dtype=torch.float64))
            continue
        z = wide["weight"] @ wide["hidden"][row]
        z = z + wide["w2"] @ wide["x2"][row] if case.r else z
        z = z + wide["bias"] if case.bias else z
        z = z * case.scale
        z = case.softcap * torch.tanh(z / case.softcap) if case.softcap else z
        p = torch.exp(z) / torch.exp(z).sum()
        out["logps"].append(p[target].log())
        out["logsumexp"].append(torch.exp(z).sum().log())
        out["entropy"].append(-(p * p.log()).sum())
        out["log_sum_p2"].append((p * p).sum().log())
        out["is_top1"].append((z[target] == z.max()).double())
        out["mean_logit"].append(z.sum() / case.v)
    return {name: torch.stack(values) for name, values in out.items()}


def upstream(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Draw a gradient for every output: both signs, a third of them exactly zero."""
    return {
        name: torch.randn(v.shape, dtype=torch.float64) * (torch.rand(v.shape) > 1 / 3)
        for name, v in values.items()
    }


def pull(values: dict[str, Tensor], grads: dict[str, Tensor], leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Pull the upstream gradients back to the leaves."""
    total = sum((values[name] * grad.to(values[name].dtype)).sum() for name, grad in grads.items())
    if not isinstance(total, Tensor) or not total.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), found, strict=True)
    }
