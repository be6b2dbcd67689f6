"""TRL's DPOTrainer as a contender of the step benchmark, on the same token ids, models and optimizer."""

from __future__ import annotations

import copy
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.shared.environment import is_installed
from benchmarks.step.contender import AfterStep, NotAvailableError
from benchmarks.step.flops import Row
from benchmarks.step.models import adapter_config
from benchmarks.step.task import Task
from prefopt.types import TokenizedGroup

FLASH = {"flash_attention_3": "flash_attn_interface", "flash_attention_2": "flash_attn"}
"""Attention implementations of transformers that come with a package of their own; the fastest first."""


@dataclass(frozen=True, slots=True)
class TrlWay:
    """How TRL is set up.

    Args:
        is_cached: precompute the reference's log-probs.
        sorts: batch rows of like length, as ``train_sampling_strategy="group_by_length"`` does.
        attention: ``sdpa``, or a name out of ``FLASH``.
        liger: take Liger's kernels for the layers.
        recomputes: gradient checkpointing.
    """

    is_cached: bool = False
    sorts: bool = False
    attention: str = "sdpa"
    liger: bool = False
    recomputes: bool = False

    def obstacle(self, task: Task) -> str:
        """Say why this cannot run here, or nothing."""
        needed = ["trl", "datasets"]
        needed += ["peft"] if task.model.rank else []
        needed += ["liger_kernel"] if self.liger else []
        needed += [FLASH[self.attention]] if self.attention in FLASH else []
        absent = [name for name in needed if not is_installed(name)]
        return f"{' and '.join(absent)} not installed" if absent else ""


class Trl:
    """TRL's DPOTrainer on the same token ids; a row of more than one pair becomes as many rows."""

    def __init__(self, task: Task, way: TrlWay | None = None) -> None:
        self.task, self.way = task, way or TrlWay()
        self.losses: list[float] = []

    def load(self) -> None:
        """Import TRL and lay the rows out as its data set.

        Raises:
            NotAvailableError: something this needs is not there.
        """
        if why := self.way.obstacle(self.task):
            raise NotAvailableError(why)
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
        checked = [row for group in self.task.checked for row in _pairs(group)]
        timed = [row for at in self.task.order() for row in _pairs(self.task.table[at])]
        self.num_checked = len(checked)
        self.rows: list[Row] = [(len(p), (len(c), len(r))) for p, c, r in timed]
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        columns = zip(*checked, *timed, strict=True)
        self.data = datasets.Dataset.from_dict(
            {name: list(ids) for name, ids in zip(names, columns, strict=True)}
        )

    @property
    def lengths(self) -> list[int]:
        """Return the tokens of the longer answer of every pair, with its prompt."""
        return [prompt + max(owns) for prompt, owns in self.rows]

    def build(self) -> None:
        task = self.task
        model, reference, adapters = self._models()
        self.folder = Path(tempfile.mkdtemp())
        self.trainer = self._subclass()(
            model=model,
            ref_model=reference,
            args=self.config_class(output_dir=str(self.folder), **self._settings()),
            train_dataset=self.data,
            processing_class=task.rows.tokenizer(),
            **adapters,
        )
        if self.way.is_cached and self.trainer.ref_model is not None:
            # it has done its work, and TRL would keep it
            self.trainer.ref_model = None
            del reference
            gc.collect()
            if task.device == "cuda":
                torch.cuda.empty_cache()
        if task.model.rank:
            # peft's default is float32, which without autocast makes every product of theirs a slow one
            for parameter in self.trainer.model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.to(next(iter(model.parameters())).dtype)

    def _models(self) -> tuple[Any, Any, dict[str, Any]]:
        """Return policy, reference and adapters; TRL puts adapters on itself, or it would copy them as reference."""
        task = self.task
        if task.model.rank:
            settings = adapter_config(task.model, is_start=not task.other_reference)
            return task.make_base(self.way.attention), None, {"peft_config": settings}
        model = task.make_model(self.way.attention)
        if task.other_reference:
            return model, task.make_other(self.way.attention), {}
        return model, None if self.way.is_cached else copy.deepcopy(model), {}

    @property
    def pairs_per_batch(self) -> int:
        return self.task.pairs_per_batch or self.task.pairs_per_step

    def _settings(self) -> dict[str, Any]:
        task, on_gpu = self.task, self.task.device == "cuda"
        return {
            "max_steps": task.num_steps,
            "per_device_train_batch_size": self.pairs_per_batch,
            "gradient_accumulation_steps": task.pairs_per_step // self.pairs_per_batch,
            "learning_rate": task.lr,
            "lr_scheduler_type": "constant",
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "optim": "adamw_torch_fused",
            "beta": task.beta,
            "loss_type": ["sigmoid"],
            "max_length": None,  # the rows fit
            "precompute_ref_log_probs": self.way.is_cached,
            "precompute_ref_batch_size": self._scored_at_once() if self.way.is_cached else None,
            "bf16": task.model.autocast,
            "use_liger_kernel": self.way.liger,
            "gradient_checkpointing": self.way.recomputes,
            "logging_strategy": "no",
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": not on_gpu,
            "dataloader_num_workers": 4 if on_gpu else 0,
            "dataloader_pin_memory": on_gpu,
            "seed": task.seed,
        }

    def _scored_at_once(self) -> int:
        """Return the pairs of one batch without gradient; on a GPU no more than are trained on at once, to fit."""
        return self.pairs_per_batch if self.task.device == "cuda" else 4 * self.task.pairs_per_step

    def _subclass(self) -> Any:
        """Return TRL's trainer with our token ids and our order of rows; nothing else is changed."""
        order, losses = [self.num_checked + at for at in self.order], self.losses

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

    @cached_property
    def order(self) -> list[int]:
        """Return positions among the timed rows; those of warm-up steps stay in front when others are sorted."""
        from transformers.trainer_pt_utils import LengthGroupedSampler

        lengths = self.lengths
        count, front = len(lengths), self.task.warmup * self.task.pairs_per_step
        if not self.way.sorts:
            return list(range(count))
        generator = torch.Generator().manual_seed(self.task.seed)
        grouped = LengthGroupedSampler(self.task.pairs_per_step, lengths=lengths[front:], generator=generator)
        return [*range(front), *(front + at for at in grouped)]

    def check(self) -> tuple[float, float]:
        """Return loss and gradient norm on the rows to be checked; the weights stay as they are.

        Liger's kernels come in when training starts, so they are not seen here.
        """
        trainer, model, total = self.trainer, self.trainer.model, 0.0
        model.train()
        for at in range(self.num_checked):
            inputs = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[at]]))
            with trainer.accelerator.autocast():
                loss = trainer.compute_loss(model, inputs) / self.num_checked
            loss.backward()
            total += loss.item()
        parameters = [p for p in model.parameters() if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(parameters, float("inf")).item()
        model.zero_grad(set_to_none=True)
        self.losses.clear()
        return total, norm

    def train(self, after_step: AfterStep) -> None:
        from transformers import PrinterCallback, TrainerCallback

        losses = self.losses

        class Ends(TrainerCallback):
            """Report the end of every optimizer step, and stop where that says so."""

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                control.should_training_stop |= bool(after_step(losses[-1] if losses else None))

        self.trainer.remove_callback(PrinterCallback)
        self.trainer.add_callback(Ends())
        try:
            self.trainer.train()
        finally:
            shutil.rmtree(self.folder)

    def batches(self, step: int) -> list[list[Row]]:
        """Return the lengths of the rows of every batch of one optimizer step."""
        first = step * self.task.pairs_per_step
        order = self.order[first : first + self.task.pairs_per_step]
        cuts = range(0, len(order), self.pairs_per_batch)
        return [[self.rows[at] for at in order[cut : cut + self.pairs_per_batch]] for cut in cuts]


def _pairs(group: TokenizedGroup) -> list[tuple[list[int], list[int], list[int]]]:
    prompt = group.prompts[0].tolist()
    return [
        (prompt, group.responses[pair.chosen].tolist(), group.responses[pair.rejected].tolist())
        for pair in group.preferences
    ]


class InOrder(torch.utils.data.Sampler[int]):
    """Hand out given positions in their order."""

    def __init__(self, order: list[int]) -> None:
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order)
