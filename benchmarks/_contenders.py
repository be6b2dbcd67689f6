"""The contenders of the step benchmark: prefopt in four layouts, and TRL in its best settings for one process."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks._rows import Rows
from prefopt.cache import LogpCache
from prefopt.data.pack import pack
from prefopt.data.plan import Plan
from prefopt.data.table import GroupTable
from prefopt.distributed import Engine
from prefopt.kernels import token_logps
from prefopt.losses import dpo
from prefopt.optim import OptimSettings
from prefopt.policy import Policy
from prefopt.reference import CachedReference, FrozenReference, Reference, fill_cache
from prefopt.trainer import Trainer
from prefopt.types import PackedBatch, SeqLogps

AfterStep = Callable[[float | None], None]


@dataclass(frozen=True)
class Task:
    """The same for every contender: rows, their order, model, optimizer.

    Step ``i`` of every contender trains on the same pairs, unless it sorts them by length.
    """

    rows: Rows
    num_steps: int
    device: str = "cpu"
    pairs_per_step: int = 8
    tokens_per_batch: int = 8192
    warmup: int = 0  # steps that are not timed
    lr: float = 1e-5
    beta: float = 0.1
    seed: int = 0
    records_losses: bool = False  # reads the loss on the host after every step
    model: dict[str, int] = field(default_factory=dict)  # changes to the configuration below

    @cached_property
    def config(self) -> LlamaConfig:
        sizes: dict[str, Any] = {
            "vocab_size": 8192,
            "hidden_size": 256,
            "intermediate_size": 688,  # Llama's own ratio to the hidden size
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 2048,
        }
        special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "tie_word_embeddings": False}
        return LlamaConfig(**(sizes | self.model | special))

    def make_model(self) -> LlamaForCausalLM:
        """Build the model in float32; equal weights in every process."""
        torch.manual_seed(self.seed)
        # a copy of its own: trainers write their choices into the configuration
        model: nn.Module = LlamaForCausalLM(copy.deepcopy(self.config))
        model.to(self.device)
        return cast("LlamaForCausalLM", model)

    @cached_property
    def table(self) -> GroupTable:
        return GroupTable.from_groups(self.rows.groups)

    def plan(self, share_prompts: bool = True) -> Plan:
        """Spread the rows over steps; the order is the same in both layouts."""
        return Plan(
            self.table.sizes(share_prompts),
            units_per_step=self.pairs_per_step,
            tokens_per_batch=self.tokens_per_batch,
            seed=self.seed,
        )

    def order(self) -> list[int]:
        """Return the row of every pair that is trained on, step after step."""
        plan = self.plan()
        return [int(row) for step in range(self.num_steps) for row in plan.groups(step)]


class Prefopt:
    """Our trainer, as a script would call it."""

    def __init__(self, task: Task, *, share_prompts: bool = True, is_cached: bool = False) -> None:
        self.task, self.share_prompts, self.is_cached = task, share_prompts, is_cached

    def load(self) -> None:
        self.plan = self.task.plan(self.share_prompts)

    def build(self) -> None:
        task = self.task
        model = task.make_model()
        reference: Reference = FrozenReference(self.policy(copy.deepcopy(model)), is_start=True)
        if self.is_cached:
            reference = self._cached(reference)
        self.trainer = Trainer(
            self.policy(model),
            partial(dpo, beta=task.beta),
            self.plan,
            task.table,
            num_steps=task.num_steps,
            reference=reference,
            optim=OptimSettings(lr=task.lr, schedule="constant", warmup=0, clip=1.0),
            engine=Engine(cpu=task.device == "cpu"),
            share_prompts=self.share_prompts,
            seed=task.seed,
        )

    def policy(self, model: LlamaForCausalLM) -> Policy:
        return Policy(model)

    def _cached(self, reference: Reference) -> CachedReference:
        cache = LogpCache()
        fill_cache(cache, reference, self._packs())
        return CachedReference(cache, is_start=True, device=self.task.device)

    def _packs(self) -> Iterator[PackedBatch]:
        for step in range(min(self.task.num_steps, self.plan.num_steps(1))):
            for members in self.plan.step(step).ranks[0]:
                batch = pack([self.task.table[i] for i in members], share_prompts=self.share_prompts)
                yield batch.to(self.task.device)

    def train(self, after_step: AfterStep) -> None:
        for result in self.trainer:
            is_read = self.task.records_losses
            after_step(result.sums.values["loss"].item() / result.units if is_read else None)


class Padded(Prefopt):
    """Our loop around the usual layout: one padded row per answer, chosen and rejected to one length."""

    def __init__(self, task: Task) -> None:
        super().__init__(task, share_prompts=False)

    def policy(self, model: LlamaForCausalLM) -> Policy:
        return cast("Policy", PaddedPolicy(model))


class PaddedPolicy:
    """Score a batch the usual way, so that all but the layout stays the same; a stand-in for ``Policy``."""

    drops = False

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model

    def __call__(self, batch: PackedBatch, *, stats: Collection[str] = ()) -> SeqLogps:
        ids, mask, at = unpack(batch)
        trunk = self.model.model(input_ids=ids, attention_mask=mask, use_cache=False)
        hidden: Tensor = trunk.last_hidden_state.flatten(0, 1)  # [S * L, D]
        scored = token_logps(hidden, self.model.lm_head.weight, batch.target_ids, rows=at)
        return SeqLogps(tokens=scored.logps, lengths=batch.lengths)


def unpack(batch: PackedBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Lay every answer of a packed row out behind its own prompt.

    Returns:
        Ids and attention mask [S, L], padded on the right, and the flat positions [M] that score ``target_ids``.
    """
    segments = batch.segments
    spans = list(zip(segments.starts, segments.lengths, strict=True))
    paths = [(spans[parent], spans[i]) for i, parent in enumerate(segments.parents) if parent >= 0]
    width = max(before[1] + own[1] for before, own in paths)
    ids = batch.input_ids.new_zeros(len(paths), width)
    mask = torch.zeros_like(ids)
    at: list[Tensor] = []
    for row, path in enumerate(paths):
        (prompt, own) = path
        tokens = torch.cat([batch.input_ids[low : low + count] for low, count in path])
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        first = row * width + prompt[1] - 1
        at.append(torch.arange(first, first + own[1], device=ids.device))
    return ids, mask, torch.cat(at)


class Trl:
    """TRL's DPOTrainer on the same token ids, in the settings that are best for one process and float32.

    Args:
        task: what to train.
        is_cached: precompute the reference's log-probs.
        sorts: group rows of like length into batches, as ``train_sampling_strategy="group_by_length"`` does.
    """

    def __init__(self, task: Task, *, is_cached: bool = False, sorts: bool = False) -> None:
        self.task, self.is_cached, self.sorts = task, is_cached, sorts
        self.losses: list[float] = []

    def load(self) -> None:
        os.environ["TQDM_DISABLE"] = "1"
        import datasets
        import transformers
        import trl

        quiet: Any = transformers.logging
        quiet.set_verbosity_error()
        datasets.disable_progress_bars()
        # looked up here, because they are imported lazily and imports are not to be measured
        peer: Any = trl
        self.trainer_class, self.config_class = peer.DPOTrainer, peer.DPOConfig
        order = self.task.order()
        groups = [self.task.table[row] for row in order]
        self.lengths = [len(g.prompts[0]) + max(map(len, g.responses)) for g in groups]
        self.data = datasets.Dataset.from_dict(
            {
                "prompt_ids": [g.prompts[0].tolist() for g in groups],
                "chosen_ids": [g.responses[0].tolist() for g in groups],
                "rejected_ids": [g.responses[1].tolist() for g in groups],
            }
        )

    def build(self) -> None:
        model = self.task.make_model()
        self.folder = Path(tempfile.mkdtemp())
        self.trainer = self._subclass()(
            model=model,
            ref_model=None if self.is_cached else copy.deepcopy(model),
            args=self.config_class(output_dir=str(self.folder), **self._settings()),
            train_dataset=self.data,
            processing_class=self.task.rows.tokenizer(),
        )

    def _settings(self) -> dict[str, Any]:
        task = self.task
        return {
            "max_steps": task.num_steps,
            "per_device_train_batch_size": task.pairs_per_step,
            "gradient_accumulation_steps": 1,
            "learning_rate": task.lr,
            "lr_scheduler_type": "constant",
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "optim": "adamw_torch_fused",
            "beta": task.beta,
            "loss_type": ["sigmoid"],
            "max_length": None,  # the rows fit
            "precompute_ref_log_probs": self.is_cached,
            "precompute_ref_batch_size": 4 * task.pairs_per_step if self.is_cached else None,
            "bf16": False,
            "gradient_checkpointing": False,
            "logging_strategy": "no",
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": task.device == "cpu",
            "dataloader_pin_memory": task.device == "cuda",
            "seed": task.seed,
        }

    def _subclass(self) -> Any:
        """Return TRL's trainer with our token ids and our order of rows; nothing else is changed."""
        order, losses = self._order(), self.losses

        class Given(self.trainer_class):  # type: ignore[misc, name-defined]
            """TRL's trainer on rows that are tokenized and ordered already."""

            def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
                return dataset

            def _get_train_sampler(self, *_: Any) -> Any:
                return InOrder(order)

        class Recorded(Given):
            """The same, reading every loss on the host."""

            def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
                loss = super().compute_loss(*args, **kwargs)
                losses.append(loss.detach().item())
                return loss

        return Recorded if self.task.records_losses else Given

    def _order(self) -> list[int]:
        """Return positions in the data set; rows of warm-up steps stay in front when the others are sorted."""
        from transformers.trainer_pt_utils import LengthGroupedSampler

        count, front = len(self.lengths), self.task.warmup * self.task.pairs_per_step
        if not self.sorts:
            return list(range(count))
        generator = torch.Generator().manual_seed(self.task.seed)
        grouped = LengthGroupedSampler(
            self.task.pairs_per_step, lengths=self.lengths[front:], generator=generator
        )
        return [*range(front), *(front + at for at in grouped)]

    def train(self, after_step: AfterStep) -> None:
        from transformers import PrinterCallback, TrainerCallback

        losses = self.losses

        class Ends(TrainerCallback):
            """Report the end of every optimizer step."""

            def on_step_end(self, *_: Any, **__: Any) -> None:
                after_step(losses[-1] if losses else None)

        self.trainer.remove_callback(PrinterCallback)
        self.trainer.add_callback(Ends())
        self.trainer.train()
        shutil.rmtree(self.folder)


class InOrder(torch.utils.data.Sampler[int]):
    """Hand out given positions in their order."""

    def __init__(self, order: list[int]) -> None:
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order)


CONTENDERS: dict[str, Callable[[Task], Prefopt | Trl]] = {
    "prefopt": Prefopt,
    "prefopt, cached reference": partial(Prefopt, is_cached=True),
    "prefopt, padding-free only": partial(Prefopt, share_prompts=False),
    "prefopt, padded": Padded,
    "TRL": Trl,
    "TRL, grouped by length": partial(Trl, sorts=True),
    "TRL, precomputed reference": partial(Trl, is_cached=True),
}
"""Who takes part, by the name in the table."""


def worst_gap(losses: list[float | None], others: list[float | None]) -> float:
    """Return the largest difference of two loss curves."""
    return float(np.abs(np.array(losses, float) - np.array(others, float)).max())
