"""An estimate of the memory of a step, good enough to start the search for a batch size from."""

from __future__ import annotations

from benchmarks._flops import Sizes
from benchmarks._models import DTYPES, Model
from benchmarks._ours import Way
from benchmarks._trl import TrlWay

FILLED = 0.85
"""Share of the device's memory that the search starts with."""


def num_weights(sizes: Sizes, ties: bool) -> int:
    """Return the parameters of matrices and embeddings."""
    return sizes.trunk + sizes.vocab * sizes.hidden * (1 if ties else 2)


def fixed_bytes(model: Model, *, has_second_model: bool) -> int:
    """Return the bytes of weights, gradients, AdamW's moments and a reference of its own."""
    weights, width = num_weights(model.sizes, model.ties), DTYPES[model.dtype].itemsize
    if model.rank:
        return width * (weights + 4 * model.counted.adapter)
    return width * weights * (5 if has_second_model else 4)


def token_bytes(model: Model, *, recomputes: bool) -> int:
    """Return the bytes that one token of the trunk keeps for the backward.

    Per layer 24 D + 8 (Hq + Hkv) d + 8 I in half precision, as transformers' modules run one by one; with
    layers computed again, the input of each and the contents of one.
    """
    sizes = model.sizes
    width = DTYPES[model.dtype].itemsize if not model.autocast else 4
    heads = (sizes.heads + sizes.kv_heads) * sizes.head_dim
    layer = width * (12 * sizes.hidden + 4 * heads + 4 * sizes.intermediate)
    return sizes.layers * width * sizes.hidden + layer if recomputes else sizes.layers * layer


def fitting_tokens(model: Model, way: Way | TrlWay, device_bytes: int) -> int:
    """Return how many tokens of the trunk are expected to fit at once."""
    is_second = not way.is_cached and not model.rank
    room = FILLED * device_bytes - fixed_bytes(model, has_second_model=is_second)
    each = token_bytes(model, recomputes=way.recomputes)
    if isinstance(way, Way) and way.head == "logits":
        # half of the tokens are answers, each with logits in half and single precision, log-probs and gradient
        each += 14 * model.sizes.vocab // 2
    return max(1, int(room // each))
