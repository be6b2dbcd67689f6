"""The shared loop: one optimizer step at a time, the same for every loss.

``Trainer`` is an iterator over finished steps. Logging, evaluating, saving and stopping are ordinary
code in whoever iterates; between two steps the weights are at rest.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

import torch
from torch import Tensor, nn

from prefopt.data.packs.loader import Groups, stream
from prefopt.data.packs.pack import pack
from prefopt.data.packs.plan import Plan
from prefopt.engine import Engine
from prefopt.errors import NonFiniteError, RecipeError
from prefopt.losses import LossContract, contract_of
from prefopt.policy import Policy
from prefopt.reference import MovingReference, Reference, check_rows
from prefopt.structures import STRUCTURES, UnitLogps
from prefopt.trainer.identity import check_logps, check_loss
from prefopt.trainer.inputs import inputs_of, wanted_inputs
from prefopt.trainer.metrics import MetricSums, divide, pack_sums
from prefopt.trainer.optim import OptimSettings, adamw, learning_rate, set_learning_rate, trainable
from prefopt.trainer.replay import Replay, StepLayout, lay_out
from prefopt.trainer.scoring import Scorer, Scores
from prefopt.trainer.weighting import TokenMasks
from prefopt.types import LEARNED_MASKS, LossOutput, PackedBatch, SeqLogps, Step, Totals

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepResult:
    """One finished optimizer step; its numbers are still on the device."""

    index: int  # from 0
    epoch: int
    totals: Totals
    units: int
    lr: float
    seconds: float  # wall time since the previous step ended
    sums: MetricSums = field(repr=False)
    grad_norm: Tensor = field(repr=False)  # [], before clipping
    skipped: bool = False  # the step was not finite and left the weights alone

    def means(self) -> dict[str, float]:
        """Read the metrics of a run on one process: means over the units of the step."""
        return divide(*self.sums.vector(), self.units)


class Trainer:
    """Train a policy with one loss over a plan.

    Args:
        policy: the model to train; its ``model`` is wrapped for the engine here.
        loss: any loss of ``prefopt.losses`` or one with such a signature; bind settings with
            ``functools.partial`` or ``prefopt.assemble.loss.build_loss``.
        plan: which groups meet in which step.
        groups: hands out a group by index, e.g. a ``GroupTable`` or a list.
        num_steps: optimizer steps of the whole run, which the schedule is laid over.
        reference: needed by losses whose signature has ``reference``.
        optim: settings of AdamW and its schedule.
        engine: devices and ranks; None is one process on the default device.
        masks: makes the token weights that a loss may ask for as ``types.LEARNED_MASKS``.
        share_prompts: compute each prompt once for all its responses.
        on_nonfinite: "abort" raises before the weights change, "skip" leaves the step out and goes on.
        start_step: first step to run, for a resumed run.
        seed: of dropout; the order of the data is the plan's.

    Raises:
        RecipeError: the loss needs a reference and there is none, or one that can do more; or it needs
            ``masks`` and there are none.
    """

    def __init__(
        self,
        policy: Policy,
        loss: Callable[..., LossOutput],
        plan: Plan,
        groups: Groups,
        *,
        num_steps: int,
        reference: Reference | None = None,
        optim: OptimSettings | None = None,
        engine: Engine | None = None,
        masks: TokenMasks | None = None,
        share_prompts: bool = True,
        on_nonfinite: str = "abort",
        start_step: int = 0,
        seed: int = 0,
    ) -> None:
        self.contract: LossContract = getattr(loss, "contract", None) or contract_of(loss)
        self.structure = STRUCTURES[self.contract.structure]
        if self.contract.needs_reference and reference is None:
            raise RecipeError(
                f"reference: {self.contract.name} compares with a reference, but there is none."
            )
        if self.contract.row_stats:
            check_rows(self.contract.name, self.contract.row_stats, policy, reference)
        if set(LEARNED_MASKS) & set(self.contract.row_stats) and masks is None:
            raise RecipeError(
                f"masks: {self.contract.name} learns its token weights, but there is no module."
            )
        self.engine = engine or Engine()
        self.policy, self.loss, self.plan, self.groups = policy, loss, plan, groups
        self.reference = reference if self.contract.needs_reference else None
        self.settings = optim or OptimSettings()
        self.num_steps, self.start_step, self.seed = num_steps, start_step, seed
        self.share_prompts, self.on_nonfinite = share_prompts, on_nonfinite
        self.policy.model = self.engine.prepare(policy.model)
        self.masks = None if masks is None else masks.to(self.engine.device)
        self.parameters = trainable(self.engine.unwrap(self.policy.model))
        self.optimizer = adamw(self.engine.unwrap(self.policy.model), self.settings, self.masks)
        self.scorer = Scorer(policy, self.reference, self.contract, self.engine, self.masks)
        self.identity: float | None = None  # step-0 difference, once checked
        self.carried: dict[str, Tensor] = {}  # what the loss hands to itself in the next optimizer step
        self._to_carry: dict[str, Tensor] = {}
        self._is_first_step = False
        self._scoring = 0  # the pack that is being scored
        self.requests = 0  # bit mask, or-ed over ranks at every step boundary; see `request`
        self.requested = 0

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """Everything that the optimizer changes, by name: the policy's parameters and those of the masks."""
        masks = {} if self.masks is None else trainable(self.masks)
        return self.parameters | {f"masks.{name}": parameter for name, parameter in masks.items()}

    def __iter__(self) -> Iterator[StepResult]:
        """Run the steps that are left, yielding each when its weights are in place."""
        self.policy.model.train()
        if self.masks is not None:
            self.masks.train()
        before = time.perf_counter()
        for step in stream(
            self.plan,
            self.groups,
            start=self.start_step,
            stop=self.num_steps,
            rank=self.engine.rank,
            share_prompts=self.share_prompts,
            device=self.engine.device,
        ):
            lr = learning_rate(self.settings, step.index, self.num_steps)
            sums, norm, skipped = self._step(step, lr)
            now = time.perf_counter()
            yield StepResult(
                index=step.index,
                epoch=step.epoch,
                totals=step.totals,
                units=self.units(step.totals),
                lr=lr,
                seconds=now - before,
                sums=sums,
                grad_norm=norm,
                skipped=skipped,
            )
            before = now

    def request(self, bit: int) -> None:
        """Ask all ranks to see ``bit`` in ``requested`` after the current step; safe in a signal handler."""
        self.requests |= bit

    def units(self, totals: Totals) -> int:
        """Return how many units the loss of one step is averaged over."""
        return self.structure.units(totals)

    @torch.no_grad()
    def evaluate(self, plan: Plan, groups: Groups) -> dict[str, float]:
        """Return the mean loss and metrics over all steps of a plan's first epoch, weights untouched."""
        wrapped = self.policy.model
        self.policy.model = self.engine.unwrap(wrapped)
        self.policy.model.eval()
        if self.masks is not None:
            self.masks.eval()
        sums, totals = MetricSums(), plan.epoch_totals(0)
        try:
            for step in stream(
                plan,
                groups,
                start=0,
                stop=plan.num_steps(1),
                rank=self.engine.rank,
                share_prompts=self.share_prompts,
                device=self.engine.device,
            ):
                if self.contract.is_whole_step:
                    layout = lay_out(plan, groups, step.index, self.engine)
                    part = self._evaluate_whole(layout, step, totals)
                    sums.merge(part, is_ghost=not self.engine.is_main)
                    continue
                for batch in step.packs:
                    part, _ = self._forward(self._on_device(batch), totals, step.index)
                    sums.merge(part, is_ghost=batch.is_ghost)
        finally:
            self.policy.model = wrapped
            wrapped.train()
            if self.masks is not None:
                self.masks.train()
        names, vector = sums.vector()
        return divide(names, self.engine.sum(vector), self.units(totals))

    def _step(self, step: Step, lr: float) -> tuple[MetricSums, Tensor, bool]:
        # a rank with nothing but ghosts in the first step must not check the moved weights of a later one
        self._is_first_step = step.index == 0
        sums, losses, packs = self._accumulate(step)
        self._is_first_step = False
        if self.masks is not None:
            self.engine.average_gradients(self.masks)
        norm = self.engine.clip(self.trained.values(), self.settings.clip)
        loss = sums.values["loss"]
        is_bad = ~(torch.isfinite(norm) & torch.isfinite(loss))
        flags = torch.stack([is_bad.to(torch.int32), *self._request_bits(norm.device)])
        found, *bits = self.engine.max(flags).tolist()  # the one host sync of a step
        self.requested = sum(bit << i for i, bit in enumerate(bits))
        if found and self.on_nonfinite == "abort":
            raise NonFiniteError(self._blame(step, losses, packs, norm))
        if not found:
            set_learning_rate(self.optimizer, lr)
            self.optimizer.step()
            self.carried = self._to_carry
        self.optimizer.zero_grad(set_to_none=True)
        if isinstance(self.reference, MovingReference):
            self.reference.follow(self.parameters, step.index + 1)
        return sums, norm, bool(found)

    def _request_bits(self, device: torch.device) -> tuple[Tensor, ...]:
        bits = [self.requests >> i & 1 for i in range(2)]
        # filled there: a list would have to be copied to the device, which waits for it
        return tuple(torch.full((), bit, dtype=torch.int32, device=device) for bit in bits)

    def _accumulate(self, step: Step) -> tuple[MetricSums, list[Tensor], list[PackedBatch]]:
        """Add up the gradients of all packs; a pack that does not fit into memory is halved and all is redone."""
        packs = list(step.packs)
        members: list[tuple[int, ...]] = []  # of every pack; planned again only where one must be halved
        run = self._run_whole if self.contract.is_whole_step else self._run_each
        while True:
            try:
                return *run(step, packs), packs
            except torch.OutOfMemoryError as error:
                self.optimizer.zero_grad(set_to_none=True)
                at, members = (
                    self._scoring,
                    members or list(self.plan.step(step.index).ranks[self.engine.rank]),
                )
                halves = self._halve(packs[at], members[at], error)
                members[at : at + 1] = halves
                packs[at : at + 1] = [
                    pack([self.groups[i] for i in half], share_prompts=self.share_prompts) for half in halves
                ]

    def _on_device(self, batch: PackedBatch) -> PackedBatch:
        return batch.to(self.engine.device, non_blocking=True)

    def _run_each(self, step: Step, packs: list[PackedBatch]) -> tuple[MetricSums, list[Tensor]]:
        """Add the gradient of each pack's share of the loss."""
        sums, losses = MetricSums(), []
        for at, batch in enumerate(packs):
            self._begin(step, at)
            with self.engine.accumulate(self.policy.model, is_last=at == len(packs) - 1):
                part, numerator = self._forward(self._on_device(batch), step.totals, step.index)
                self.engine.backward(numerator / self.units(step.totals))
            losses.append(numerator.detach())
            sums.merge(part, is_ghost=batch.is_ghost)
        return sums, losses

    def _run_whole(self, step: Step, packs: list[PackedBatch]) -> tuple[MetricSums, list[Tensor]]:
        """Add the gradient of a loss that reads all units of the step at once; see ``replay``."""

        def first(at: int) -> Scores:
            self._begin(step, at)
            return self.scorer.both(self._on_device(packs[at]))

        def again(at: int) -> SeqLogps:
            self._begin(step, at)
            return self.scorer.again(self._on_device(packs[at]))

        layout = lay_out(self.plan, self.groups, step.index, self.engine)
        replay = Replay(packs, layout, self.engine, self.policy.model, first, again)
        policy, reference = replay.score()
        if reference is not None and self._must_check(layout.batch):
            self._check_whole(layout, packs, policy.detach(), reference)
        part, numerator, output = self._pay(layout.batch, policy, reference, step.totals, step.index)
        replay.backward(numerator / self.units(step.totals))
        self._to_carry = dict(output.carried)
        sums = MetricSums()
        sums.merge(part, is_ghost=not self.engine.is_main)  # every rank holds all units, which count once
        return sums, replay.pack_sums

    def _evaluate_whole(self, layout: StepLayout, step: Step, totals: Totals) -> MetricSums:
        """Return the metrics of a step's units, all of them read at once."""
        found = [self.scorer.both(self._on_device(batch)) for batch in step.packs]
        policy, reference = layout.gather_both(step.packs, found, self.engine)
        return self._pay(layout.batch, policy, reference, totals, step.index)[0]

    def _begin(self, step: Step, at: int) -> None:
        """Draw the random numbers of a pack anew, alike whenever it is scored."""
        self._scoring = at
        torch.manual_seed(_mix(self.seed, step.index, at, self.engine.rank))

    def _halve(
        self, batch: PackedBatch, members: tuple[int, ...], error: torch.OutOfMemoryError
    ) -> list[tuple[int, ...]]:
        # compiled layers fill a half up again
        if self.engine.world > 1 or len(members) < 2 or self.policy.compiled is not None:
            raise RecipeError(
                f"batch.tokens_per_batch: a pack of {batch.num_tokens} tokens does not fit into memory "
                f"({str(error).splitlines()[0]}). Lower it, or batch.max_tokens, or set model.checkpointing; "
                f"`prefopt check` says what fits."
            ) from None
        middle = len(members) // 2
        log.warning("a pack of %d tokens did not fit into memory; it is halved", batch.num_tokens)
        return [members[:middle], members[middle:]]

    def _forward(self, batch: PackedBatch, totals: Totals, index: int) -> tuple[MetricSums, Tensor]:
        """Return one pack's metrics and its share of the loss numerator (weight times loss, summed)."""
        scores = self.scorer.both(batch)
        sums, numerator, output = self._pay(batch, scores.policy, scores.reference, totals, index)
        if scores.reference is not None and self._must_check(batch):
            self._check_identity(batch, scores, output, self._inputs(batch, totals, index))
        return sums, numerator

    def _pay(
        self, batch: PackedBatch, policy: SeqLogps, reference: SeqLogps | None, totals: Totals, index: int
    ) -> tuple[MetricSums, Tensor, LossOutput]:
        """Return the metrics of a batch's units, the loss numerator, and what the loss returned."""
        values = self._arrange(batch, policy)
        other = None if reference is None else self._arrange(batch, reference)
        output = self._loss(values, other, self._inputs(batch, totals, index))
        numerator = (output.loss * self.structure.weigh(batch, output.loss)).sum()
        return pack_sums(values, output, numerator), numerator, output

    def _arrange(self, batch: PackedBatch, logps: SeqLogps) -> UnitLogps:
        return self.structure.arrange(batch, logps, self.contract.roles)

    def _inputs(self, batch: PackedBatch, totals: Totals, index: int) -> dict[str, Tensor]:
        names, seed = wanted_inputs(self.contract.inputs, batch), _mix(self.seed, index)
        return inputs_of(names, self.structure, batch, totals, seed) | self.carried

    def _loss(
        self, policy: UnitLogps, reference: UnitLogps | None, inputs: Mapping[str, Tensor]
    ) -> LossOutput:
        if reference is None:
            return self.loss(policy, **inputs)
        return self.loss(policy, reference, **inputs)

    def _must_check(self, batch: PackedBatch) -> bool:
        is_start = self.reference is not None and self.reference.is_start
        # with dropout the check scores once more, which ranks that share weights must do together
        is_due = not batch.is_ghost or self.engine.sharding is not None
        return self._is_first_step and self.identity is None and is_start and is_due

    def _check_identity(
        self, batch: PackedBatch, scores: Scores, output: LossOutput, inputs: Mapping[str, Tensor]
    ) -> None:
        """Compare the loss with that of equal log-probs."""
        assert scores.reference is not None
        policy = self._arrange(batch, scores.policy)
        if self.policy.drops:
            policy = self._arrange(batch, self.scorer.still(batch, scores.rows))
            output = self._loss(policy, self._arrange(batch, scores.reference), inputs)
        with torch.no_grad():
            expected = self._loss(policy.detach(), policy.detach(), inputs).loss
        loss = output.loss.detach()
        self.identity = check_loss(self.structure, batch, loss, expected, self._dtype)

    def _check_whole(
        self, layout: StepLayout, packs: list[PackedBatch], policy: SeqLogps, reference: SeqLogps
    ) -> None:
        """Compare the log-probs themselves, since a loss over the whole step may blow rounding up."""
        if self.policy.drops:
            still = [self.scorer.still(self._on_device(batch)) for batch in packs]
            policy = layout.gather(packs, still, self.engine)
        self.identity = check_logps(layout.batch, policy, reference, self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return self.engine.autocast_dtype or next(self.policy.model.parameters()).dtype

    def _blame(self, step: Step, losses: list[Tensor], packs: list[PackedBatch], norm: Tensor) -> str:
        bad = [at for at, loss in enumerate(losses) if not torch.isfinite(loss)]
        rows = [origin for at in bad for origin in packs[at].origins]
        where = ", ".join(rows[:8]) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
        what = f"the loss of a pack with {where} is" if rows else f"the gradient norm is {norm.item()},"
        return (
            f"step {step.index + 1}: {what} not finite; the weights are still those after step {step.index}. "
            f"Lower optim.lr, look at those rows, or set train.on_nonfinite=skip."
        )


def _mix(*parts: int) -> int:
    """Return a 63-bit seed from several integers."""
    digest = blake2b(b"".join(part.to_bytes(8, "little", signed=True) for part in parts), digest_size=8)
    return int.from_bytes(digest.digest(), "little") >> 1
