"""How much memory a call of ``token_kl`` takes, counted from its sizes, for plans made before any run."""

from __future__ import annotations

from dataclasses import replace

from prefopt.kernels.footprint import Footprint
from prefopt.kernels.linear_logp.footprint import ChunkedCount, HeadCall

_TILES = 4
"""Logits and exponentials of both heads, of one chunk of rows."""


def kl_footprint(call: HeadCall) -> Footprint:
    """Return what the divergence of two heads holds besides hidden states and weights, gradients included.

    Args:
        call: the sizes of the policy's head; the reference's vocabulary is the same.
    """
    call = replace(call, stats=())
    mode = call.mode("chunked")
    count = ChunkedCount(call, mode, tiles=_TILES)
    picked, wide, tile = call.scored(call.hidden.itemsize), call.wide, count.tile
    several, widened = call.num_rows > count.rows, count.widened()
    slopes = call.logits(wide) if mode == "cached" else 0
    units = call.scored(wide) if mode == "frozen" else 0
    # a chunk's exponentials outlive the start of the next
    last = 2 * tile if several else 0
    loop = max(last + _TILES * tile, last + 2 * tile + widened)
    if mode == "frozen":
        loop = max(loop, _TILES * tile + widened, 2 * tile + last + units)
    forward = (2 if mode == "frozen" else 1) * picked + slopes + units + loop
    if mode == "no_grad":
        return Footprint(forward, 0, 0)
    kept = slopes + units
    if mode == "recompute":
        loop = max((_TILES + several) * tile, _TILES * tile + widened)
        return Footprint(forward, kept, kept + count.backward(loop, 3 * tile))
    return Footprint(forward, kept, kept + count.backward(tile + widened, 0))


def with_kl(logps: Footprint, call: HeadCall) -> Footprint:
    """Return what a head holds that scores its targets and then measures the divergence from a reference.

    Args:
        logps: what scoring holds.
        call: the sizes of the policy's head.
    """
    kl = kl_footprint(call)
    # gradients go back through the divergence first, and those it found wait for the others
    found = call.states(call.hidden.itemsize) + call.head(call.weight.itemsize)
    return Footprint(
        max(logps.forward, logps.kept + kl.forward),
        logps.kept + kl.kept,
        max(logps.kept + kl.backward, found + logps.backward),
    )
