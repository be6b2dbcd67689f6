"""What the device can do at best, measured in the same run as everything that is compared with it."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.shared.meters import median_ms
from benchmarks.step.full_size.worker import clean_up


def ceilings(device: str) -> dict[str, Any]:
    """Measure the library's product and a copy, both of random numbers.

    Returns:
        ``product_tflops`` of an 8192^3 product in bfloat16 (512^3 in float32 on a CPU), and ``copy_tbs``,
        terabytes read and written per second; medians of 10 after 3. ``device_bytes``: memory of a GPU.
    """
    return _ceilings(device) | clean_up(device)


def _ceilings(device: str) -> dict[str, Any]:
    on_gpu = device == "cuda"
    size, dtype = (8192, torch.bfloat16) if on_gpu else (512, torch.float32)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = median_ms(lambda: torch.mm(left, right), device, warmup=3, timed=10)
    source = torch.randn((1 << 30) if on_gpu else (1 << 22), device=device)
    target = torch.empty_like(source)
    copied = median_ms(lambda: target.copy_(source), device, warmup=3, timed=10)
    return {
        "product": f"{size}^3 {str(dtype).removeprefix('torch.')}",
        "product_tflops": 2 * size**3 / product / 1e9,
        "copy_tbs": 2 * source.nbytes / copied / 1e9,
        "device_bytes": torch.cuda.get_device_properties(0).total_memory if on_gpu else None,
    }
