"""Learning-rate schedules: the share of the peak rate after so many of the steps that follow the warm-up.

Each is a pure function ``(done, steps, *, settings) -> share``; its keyword arguments are its settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable


def cosine(done: int, steps: int, *, floor: float = 0.0) -> float:
    """Fall along half a cosine from 1 to ``floor`` after the last step."""
    return floor + (1 - floor) * _half_cosine(done / max(1, steps))


def linear(done: int, steps: int, *, floor: float = 0.0) -> float:
    """Fall along a line from 1 to ``floor`` after the last step."""
    return floor + (1 - floor) * (1 - done / max(1, steps))


def constant(done: int, steps: int) -> float:
    """Stay at 1."""
    return 1.0


def wsd(
    done: int, steps: int, *, decay: float = 0.1, decay_shape: str = "linear", floor: float = 0.0
) -> float:
    """Stay at 1, then fall to ``floor`` in the last steps: warmup-stable-decay.

    A checkpoint from before the fall can be trained further at the full rate.

    Args:
        done: steps since the warm-up.
        steps: all that follow the warm-up.
        decay: length of the fall; a share of ``steps`` below 1, else a number of steps.
        decay_shape: "linear", "cosine", or "sqrt" for 1 - sqrt(share of the fall that is done).
        floor: what is left after the last step.

    Source:
        Hu et al., "MiniCPM: Unveiling the Potential of Small Language Models with Scalable Training
        Strategies", 2024, arXiv 2404.06395; a tenth of the steps is enough for its fall, which is
        exponential there. "sqrt" is from Haegele, Bakouch, Kosson, Ben Allal, Von Werra and Jaggi, "Scaling
        Laws and Compute-Optimal Training Beyond Fixed Training Durations", 2024, arXiv 2405.18392.
    """
    length = share_or_steps(decay, steps)
    fallen = done - (steps - length)
    return 1.0 if fallen <= 0 else floor + (1 - floor) * DECAY_SHAPES[decay_shape](fallen / length)


def share_or_steps(length: float, steps: int) -> int:
    """Return the steps of a rise or fall that is given as a share of ``steps`` below 1, else as a number of steps."""
    return round(length * steps) if length < 1 else int(length)


def _half_cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


SCHEDULES: dict[str, Callable[..., float]] = {
    "cosine": cosine,
    "linear": linear,
    "constant": constant,
    "wsd": wsd,
}

DECAY_SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1 - progress,
    "cosine": _half_cosine,
    "sqrt": lambda progress: 1 - math.sqrt(progress),
}
"""Forms of the fall of ``wsd``: share of the peak by share of the fall that is done."""
