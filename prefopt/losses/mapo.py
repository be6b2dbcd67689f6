"""MaPO: token-level DPO in which the reference's activations say how much each token counts."""

from __future__ import annotations

from typing import Annotated

from prefopt.losses._compose import COMBINING, RESUMMING
from prefopt.losses._door import checked
from prefopt.losses.sparse_mask import masked_tdpo
from prefopt.types import LossOutput, PairLogps, Range, Refuses, Stats


@checked
def mapo(
    policy: Annotated[PairLogps, Stats("kl", "activation"), Refuses(*RESUMMING, *COMBINING, "f_div")],
    reference: PairLogps,
    *,
    beta: Annotated[float, Range(gt=0)] = 0.1,
) -> LossOutput:
    """Pay the loss of ``tdpo`` 1 with log-ratio and divergence of each token times its activation.

    For weighing tokens without training anything for it: a token counts by how strongly the reference's
    layers respond where it is predicted, from 0 for the least of its answer to 1 for the most. About
    half of each sum is left, so the margin is about half of DPO's at the same beta. ``sparse_mask``
    learns the weights instead.

    When:
        few tokens matter and the rest is noise

    Args:
        policy: P pairs under the model being trained, with the stats ``kl`` and ``activation`` per token.
        reference: the same P pairs under the reference.
        beta: reward per nat; 0.1 in the authors' dialogue experiments, 0.8 in sentiment and summaries.

    Returns:
        Loss [P]; rewards [P], beta times (weighted log-ratio + weighted divergence); metrics ``mask`` [P], the
        mean weight of a token, and ``masked_out`` [P], the share of tokens that weigh nothing.

    Formula:
        u = sum of activation * (policy - reference), d = sum of activation * KL(reference || policy)
        loss = -log sigmoid(beta * (u_chosen - u_rejected - (d_rejected - d_chosen)))

    Source:
        Christopoulou, Cardenas, Lampouras, Bou-Ammar and Wang, "SparsePO: Controlling Preference Alignment
        of LLMs via Sparse Token Masks", 2024, arXiv 2410.05102, MaPO; its activations here are the layers'
        outputs alone.
    """
    return masked_tdpo(policy, reference, "activation", "activation", beta)
