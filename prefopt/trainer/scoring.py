"""Score packs with policy and reference, with all the statistics that a loss asks for."""

from __future__ import annotations

from typing import NamedTuple

import torch

from prefopt.engine import Engine
from prefopt.losses import LossContract
from prefopt.policy import Policy, RowStates
from prefopt.policy.guards import check_ids
from prefopt.policy.head import head_of
from prefopt.policy.wrappers import causal_model
from prefopt.reference import LiveReference, Reference
from prefopt.trainer.inputs import batch_stats
from prefopt.trainer.weighting import TokenMasks, mask_stats, needs_layers
from prefopt.types import PAIRED_STATS, STATS, PackedBatch, SeqLogps


class Scores(NamedTuple):
    """What one pack's responses are worth, and the reference's rows behind that where a statistic needs them."""

    policy: SeqLogps
    reference: SeqLogps | None
    rows: RowStates | None


class Scorer:
    """Score packs for one loss.

    Args:
        policy: the model that is trained.
        reference: None where the loss has none.
        contract: of the loss.
        engine: gives the context in which models compute.
        masks: make learned token weights, where the loss asks for them.
    """

    def __init__(
        self,
        policy: Policy,
        reference: Reference | None,
        contract: LossContract,
        engine: Engine,
        masks: TokenMasks | None,
    ) -> None:
        self.policy, self.reference = policy, reference
        self.contract, self.engine, self.masks = contract, engine, masks

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that models compute in."""
        return self.engine.autocast_dtype or next(self.policy.model.parameters()).dtype

    def on_device(self, batch: PackedBatch) -> PackedBatch:
        """Return a batch where the models are, without waiting for a GPU."""
        core = causal_model(self.policy.model)
        check_ids(core, head_of(core), batch.input_ids)  # while they are on the host
        return batch.to(self.engine.device, non_blocking=True)

    def both(self, batch: PackedBatch) -> Scores:
        """Score a pack with the reference, outside the graph, and with the policy."""
        reference, rows = self._refer(batch)
        return Scores(self.again(batch, rows), reference, rows)

    def again(self, batch: PackedBatch, rows: RowStates | None = None) -> SeqLogps:
        """Score a pack with the policy, every statistic that the loss asks for included.

        Args:
            batch: on the model's device.
            rows: of the reference for this pack; None: worked out again where they are needed.
        """
        if rows is None and self.contract.row_stats:
            _, rows = self._refer(batch)
        wanted = self.contract.policy_stats
        stats = [name for name in wanted if name in STATS or name in PAIRED_STATS]
        with self.engine.autocast():
            if "kl" in stats:
                logps = self.policy(batch, stats=stats, against=rows)
            else:
                logps = self.policy(batch, stats=stats)
        masks = {} if rows is None else mask_stats(wanted, rows.layers, batch.lengths, self.masks)
        return logps.with_stats({**batch_stats(wanted, batch), **masks})

    def still(self, batch: PackedBatch, rows: RowStates | None = None) -> SeqLogps:
        """Score a pack with the policy once more, without dropout and outside the graph."""
        with self.policy.evaluating():
            return self.again(batch, rows)

    def _refer(self, batch: PackedBatch) -> tuple[SeqLogps | None, RowStates | None]:
        """Score a pack with the reference, keeping the rows behind its log-probs where the loss needs them."""
        if self.reference is None:
            return None, None
        stats = self.contract.reference_stats
        with self.engine.autocast():
            if not self.contract.row_stats:
                return self.reference(batch, stats=stats), None
            assert isinstance(self.reference, LiveReference)
            layers = needs_layers(self.contract.policy_stats)
            return self.reference.with_rows(batch, stats=stats, layers=layers)
