"""The fused log-prob op on a GPU, at sizes of real models: errors, bits, memory. Run ``pytest -m gpu``."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from prefopt.kernels import token_logps
from prefopt.types import STATS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SHAPES = [(1, 512, 1000), (129, 1000, 50257), (512, 1024, 151936), (2048, 4096, 128256)]
MODES = ("recompute", "cached")
SMOOTH = tuple(name for name in STATS if name != "is_top1")


def draw(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return hidden states, weight, targets and an upstream gradient of mixed sign; logits of size 3."""
    rows, width, vocab = shape
    hidden = torch.randn(rows, width, device="cuda").to(dtype).requires_grad_()
    weight = (3 * torch.randn(vocab, width, device="cuda") / width**0.5).to(dtype).requires_grad_()
    targets = torch.randint(0, vocab, (rows,), device="cuda")
    return hidden, weight, targets, torch.randn(rows, device="cuda")


def truth(hidden: Tensor, weight: Tensor, targets: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probs and gradients in float64, a few rows at a time."""
    h, w = hidden.detach().double(), weight.detach().double()
    logps, dh, dw = [], [], torch.zeros_like(w)
    for at in torch.arange(len(h), device=h.device).split(256):
        log_p = torch.log_softmax(h[at] @ w.T, dim=-1)
        logps.append(log_p.gather(1, targets[at, None]).squeeze(1))
        dz = -log_p.exp() * upstream[at, None]
        dz.scatter_add_(1, targets[at, None], upstream[at, None].double())
        dh.append(dz @ w)
        dw += dz.T @ h[at]
    return torch.cat(logps), torch.cat(dh), dw


def error(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bfloat16_is_exact_and_no_worse_than_eager(shape: tuple[int, int, int], mode: str) -> None:
    """Log-probs within 1e-3 nats of float64, gradients no further off than those of full bfloat16 logits."""
    hidden, weight, targets, upstream = draw(shape, torch.bfloat16)
    logps, dh, dw = truth(hidden, weight, targets, upstream)
    result = token_logps(hidden, weight, targets, mode=mode)
    assert (result.impl, result.mode) == ("fused", mode)
    assert (result.logps.double() - logps).abs().max() < 1e-3
    found = torch.autograd.grad(result.logps, (hidden, weight), upstream)
    logits = F.linear(hidden, weight)
    eager = F.log_softmax(logits.float(), dim=-1).gather(1, targets[:, None]).squeeze(1)
    usual = torch.autograd.grad(eager, (hidden, weight), upstream)
    for ours, theirs, expected in zip(found, usual, (dh, dw), strict=True):
        assert error(ours, expected) <= 1.05 * error(theirs, expected)


def test_float32_is_within_1e_5() -> None:
    """Without TF32, log-probs and gradients are those of float32 sums over 1000 products."""
    hidden, weight, targets, upstream = draw((300, 1000, 32000), torch.float32)
    logps, dh, dw = truth(hidden, weight, targets, upstream)
    result = token_logps(hidden, weight, targets)
    assert result.impl == "fused"
    assert (result.logps.double() - logps).abs().max() < 1e-5
    found = torch.autograd.grad(result.logps, (hidden, weight), upstream)
    assert all(error(a, b) < 1e-5 for a, b in zip(found, (dh, dw), strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_every_statistic_and_term_agrees_with_the_chunked_back_end(mode: str) -> None:
    """Bias, scale, softcap, adapter, repeated and ignored rows together, in float32 against float64."""
    rows = torch.randint(0, 50, (200,), device="cuda")
    leaves = [
        torch.randn(size, device="cuda", requires_grad=True)
        for size in ((50, 96), (3001, 96), (3001,), (50, 7), (3001, 7))
    ]
    targets = torch.randint(0, 3001, (200,), device="cuda")
    targets[::7] = -100
    grads = [torch.randn(200, device="cuda") for _ in ("logps", *SMOOTH)]
    found = []
    for impl, dtype in (("fused", torch.float32), ("chunked", torch.float64)):
        h, w, b, x2, w2 = (leaf.detach().to(dtype).requires_grad_() for leaf in leaves)
        result = token_logps(
            h,
            w,
            targets,
            bias=b,
            scale=0.3,
            softcap=20.0,
            rows=rows,
            lora=(x2, w2),
            stats=STATS,
            impl=impl,
            mode=mode,
        )
        values = [getattr(result, name) for name in ("logps", *SMOOTH)]
        total = sum((v * g).sum() for v, g in zip(values, grads, strict=True))
        assert isinstance(total, Tensor)
        found.append([*values, *torch.autograd.grad(total, (h, w, b, x2, w2))])
    for a, b in zip(*found, strict=True):
        assert error(a.detach(), b.detach()) < 3e-5


@pytest.mark.parametrize("mode", [*MODES, "frozen"])
def test_the_same_call_gives_the_same_bits(mode: str) -> None:
    """Repeated rows included: nothing is added up in the order in which blocks happen to finish."""
    hidden, weight, targets, upstream = draw((1000, 1024, 50257), torch.bfloat16)
    weight.requires_grad_(mode != "frozen")
    rows = torch.randint(0, 1000, (1000,), device="cuda")
    wanted = [leaf for leaf in (hidden, weight) if leaf.requires_grad]
    runs = []
    for _ in range(3):
        logps = token_logps(hidden, weight, targets, rows=rows, mode=mode).logps
        runs.append([logps, *torch.autograd.grad(logps, wanted, upstream)])
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))


def test_memory_stays_below_a_gibibyte_and_a_half() -> None:
    """8192 rows under 152k tokens: full logits would take 2.3 GiB in bfloat16, several times over."""
    hidden, weight, targets, upstream = draw((8192, 1024, 151936), torch.bfloat16)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    logps = token_logps(hidden, weight, targets).logps
    torch.autograd.grad(logps, (hidden, weight), upstream)
    weights = weight.numel() * weight.element_size()
    assert torch.cuda.max_memory_allocated() - before - weights < 1.5 * 2**30


def test_autocast_gives_gradients_in_the_leaves_dtype() -> None:
    hidden, weight, targets, upstream = draw((300, 512, 32000), torch.float32)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        result = token_logps(hidden, weight, targets)
    rounded = [leaf.detach().bfloat16() for leaf in (hidden, weight)]
    logps, dh, dw = truth(*rounded, targets, upstream)
    assert (result.logps.double() - logps).abs().max() < 1e-3
    found = torch.autograd.grad(result.logps, (hidden, weight), upstream)
    assert [grad.dtype for grad in found] == [torch.float32, torch.float32]
    # the logits' gradient is rounded to 8 bits once
    assert all(error(a, b) < 8e-3 for a, b in zip(found, (dh, dw), strict=True))


def test_offsets_past_two_to_the_31() -> None:
    """A weight of 2.2e9 entries; the last tokens lie beyond 32-bit offsets and come out like the first."""
    width, vocab = 8192, 270_000
    weight = torch.empty(vocab, width, device="cuda", dtype=torch.bfloat16)
    assert weight.numel() > 2**31
    weight.normal_(std=0.02)
    weight[-8:] = weight[:8]
    hidden = torch.randn(16, width, device="cuda").bfloat16()
    first = torch.arange(8, device="cuda").repeat(2)
    with torch.no_grad():
        near = token_logps(hidden, weight, first).logps
        far = token_logps(hidden, weight, first + vocab - 8).logps
    assert torch.equal(near, far)
