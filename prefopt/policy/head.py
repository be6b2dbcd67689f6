"""The language model head during a scoring call: targets in, per-token statistics out as "logits".

The op runs inside the output embedding's own ``forward``, inside the model's, so that the hooks of
data-parallel, sharding and adapter libraries fire as for ordinary logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefopt.errors import ModelError
from prefopt.kernels import token_kl, token_logps
from prefopt.policy.wrappers import class_of
from prefopt.types import STATS

_NEUTRAL: dict[str, float | None] = {
    "final_logit_softcapping": None,
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
    "lm_head_multiplier": 1.0,
    "output_multiplier": 1.0,
}
"""Settings by which models transform logits after the head, and the value that does nothing."""
_MULTIPLY_LOGITS_SCALING = {"hyperclovax"}  # the others that have it divide


@dataclass(frozen=True, slots=True)
class Transform:
    """Describe what a model does to its logits after the head: scale, then softcap."""

    scale: float = 1.0
    softcap: float | None = None

    def __str__(self) -> str:
        cap = "" if self.softcap is None else f", softcap {self.softcap:g}"
        return f"scale {self.scale:g}{cap}"


@dataclass(frozen=True, slots=True)
class RowStates:
    """What makes a model's logits at the scored rows of one batch: hidden states, and the head they meet."""

    hidden: Tensor  # [M, D]
    weight: Tensor  # [V, D]
    bias: Tensor | None  # [V]
    lora: tuple[Tensor, Tensor] | None  # [M, r] and [V, r]
    transform: Transform
    layers: tuple[Tensor, ...] = ()  # of every decoder layer, what was asked for: [M] or [M, D]


def head_of(model: PreTrainedModel) -> nn.Module:
    """Return the module that makes logits, adapters included.

    Raises:
        ModelError: there is none.
    """
    find: Callable[[], nn.Module | None] = model.get_output_embeddings
    head = find()
    if head is None:
        raise ModelError(f"model: {type(model).__name__} has no language model head. Choose a causal model.")
    return head


def read_transform(model: PreTrainedModel) -> Transform:
    """Read the transform of the logits from the model's configuration.

    What a configuration works out from other settings is left to the model: MiniCPM3 divides its hidden
    states by such a ``logits_scaling``, and a model that divides its logits is refused by its first batch.

    Raises:
        ModelError: the model was built with another value than its configuration has now.
    """
    _check_copies(model)
    config = model.config.get_text_config()
    own = vars(config)
    scale = 1.0
    for name in ("logit_scale", "lm_head_multiplier", "output_multiplier"):
        value = own.get(name)
        scale *= 1.0 if value is None else float(value)
    divisor = own.get("logits_scaling")
    if divisor is not None:
        multiplies = config.model_type in _MULTIPLY_LOGITS_SCALING
        scale = scale * float(divisor) if multiplies else scale / float(divisor)
    softcap = own.get("final_logit_softcapping")
    return Transform(scale, None if softcap is None else float(softcap))


def _check_copies(model: PreTrainedModel) -> None:
    """Refuse a model that copied a transform from its configuration, where one of the two was changed since."""
    config = model.config.get_text_config()
    for name, neutral in _NEUTRAL.items():
        if name not in vars(config):
            continue
        wanted = vars(config)[name]
        copies = [vars(owner)[name] for owner in (model, model.base_model) if name in vars(owner)]
        for value in copies:
            if (neutral if value is None else value) != (neutral if wanted is None else wanted):
                raise ModelError(
                    f"model: {name} is {wanted} in the configuration of {type(model).__name__}, but the model was "
                    f"built with {value}. Set both alike."
                )


class ScoringHead:
    """Stand in for the head's ``forward`` during one call of the model.

    Args:
        score_at: int64 [M], the token whose hidden state predicts each target.
        targets: int64 [M].
        stats: statistics wanted beside the log-prob.
        transform: what the model would do to its logits.
        against: the rows of the reference, for ``kl``.
        keep: remember the rows; "copy" also copies the head, whose memory sharding libraries take back.
    """

    def __init__(
        self,
        score_at: Tensor,
        targets: Tensor,
        stats: Sequence[str],
        transform: Transform,
        *,
        against: RowStates | None = None,
        keep: Literal["no", "yes", "copy"] = "no",
    ) -> None:
        self.score_at, self.targets = score_at, targets
        self.stats, self.transform = tuple(stats), transform
        self.against, self.keep = against, keep
        self.packed: Tensor | None = None
        self.rows: RowStates | None = None
        self.impl = ""  # the back-end that scored

    def score(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, lora: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Return [1, M, 1 + stats]: where logits would be, a log-prob and statistics per target."""
        flat = hidden.flatten(0, -2)
        result = token_logps(
            flat,
            weight,
            self.targets,
            bias=bias,
            scale=self.transform.scale,
            softcap=self.transform.softcap,
            rows=self.score_at,
            lora=lora,
            stats=[name for name in self.stats if name in STATS],
        )
        found = {name: getattr(result, name) for name in self.stats if name in STATS}
        if self.against is not None:
            found["kl"] = self._diverge(flat, weight, bias, lora, self.against)
        if self.keep != "no":
            self.rows = self._rows(flat, weight, bias, lora)
        self.impl = result.impl
        columns = [result.logps, *(found[name] for name in self.stats)]
        # a new tensor and no view: sharding libraries hang their backward hooks on it
        self.packed = torch.cat([column.view(1, -1, 1) for column in columns], dim=-1)
        return self.packed

    def check_untouched(self, logits: Tensor, name: str) -> None:
        """Refuse a model that does not hand out what its head made.

        Args:
            logits: what the model returned.
            name: of the model, for the message.

        Raises:
            ModelError: it made logits without the head, or changed them behind it.
        """
        if self.packed is None:
            raise ModelError(f"model: {name} makes logits without calling its head. Choose another model.")
        if logits.shape != self.packed.shape or not torch.equal(logits.detach(), self.packed.detach()):
            raise ModelError(
                f"model: {name} changes its logits after the head in a way prefopt does not know. "
                f"Choose another model."
            )

    def _diverge(
        self,
        flat: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        lora: tuple[Tensor, Tensor] | None,
        reference: RowStates,
    ) -> Tensor:
        return token_kl(
            flat,
            weight,
            reference.hidden,
            reference.weight,
            bias=bias,
            scale=self.transform.scale,
            softcap=self.transform.softcap,
            rows=self.score_at,
            lora=lora,
            reference_bias=reference.bias,
            reference_scale=reference.transform.scale,
            reference_softcap=reference.transform.softcap,
            reference_lora=reference.lora,
        )

    def _rows(
        self, flat: Tensor, weight: Tensor, bias: Tensor | None, lora: tuple[Tensor, Tensor] | None
    ) -> RowStates:
        def constant(part: Tensor) -> Tensor:
            return part.detach().clone() if self.keep == "copy" else part.detach()

        return RowStates(
            hidden=flat.detach().index_select(0, self.score_at),
            weight=constant(weight),
            bias=None if bias is None else constant(bias),
            lora=None
            if lora is None
            else (lora[0].detach().index_select(0, self.score_at), constant(lora[1])),
            transform=self.transform,
        )


@contextmanager
def scoring(model: PreTrainedModel, scorer: ScoringHead) -> Iterator[None]:
    """Let the model's head score ``scorer.targets`` while the block runs."""
    head = head_of(model)
    with ExitStack() as stack:
        for module, forward in _forwards(head, scorer):
            stack.enter_context(_patched(module, "forward", forward))
        for owner, name in _transform_owners(model):
            stack.enter_context(_patched(owner, name, _NEUTRAL[name]))
        yield


@contextmanager
def _patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an instance attribute for the block; afterwards the instance is as it was."""
    # into its dict, since a configuration that checks types takes no value that it does not expect
    own = vars(owner)
    had, before = name in own, own.get(name)
    own[name] = value
    try:
        yield
    finally:
        if had:
            own[name] = before
        else:
            del own[name]


def _transform_owners(model: PreTrainedModel) -> list[tuple[Any, str]]:
    """Return every object that holds a logits transform: configurations and, copied from them, modules."""
    owners = {
        id(owner): owner for owner in (model.config, model.config.get_text_config(), model, model.base_model)
    }
    return [
        (owner, name)
        for owner in owners.values()
        for name, neutral in _NEUTRAL.items()
        if isinstance(vars(owner).get(name), (int, float)) and vars(owner)[name] != neutral
    ]


def check_head(model: PreTrainedModel) -> None:
    """Refuse a head that log-probs cannot be read from exactly.

    Raises:
        ModelError: no head, a quantised or offloaded one, or an adapter other than plain LoRA.
    """
    _forwards(head_of(model), ScoringHead(torch.empty(0), torch.empty(0), (), Transform()))


def _forwards(head: Any, scorer: ScoringHead) -> list[tuple[nn.Module, Callable[[Tensor], Tensor]]]:
    """Return the modules whose ``forward`` makes logits, each with the one that scores instead."""
    if hasattr(head, "original_module") and hasattr(head, "modules_to_save"):
        # whichever copy the adapter library picks, it calls that copy's forward
        copies = [head.original_module, *head.modules_to_save.values()]
        return [pair for copy in copies for pair in _forwards(copy, scorer)]
    if hasattr(head, "_hf_hook"):
        raise ModelError("model: its head is offloaded. Load the model on one device.")
    if isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward:
        return [(head, _linear_forward(head, scorer))]
    if _is_plain_lora(head):
        return [(head, _lora_forward(head, scorer))]
    raise ModelError(
        f"model: its head is a {type(head).__module__}.{type(head).__name__}. Use a plain linear head in full "
        f"precision, LoRA without variants on it, or modules_to_save."
    )


def _linear_forward(head: nn.Linear, scorer: ScoringHead) -> Callable[[Tensor], Tensor]:
    return lambda hidden: scorer.score(hidden, head.weight, head.bias)


def _is_plain_lora(head: Any) -> bool:
    kind = class_of(head)
    is_lora = kind.__module__ == "peft.tuners.lora.layer" and kind.__name__ == "Linear"
    if not is_lora or class_of(head.base_layer) is not nn.Linear:
        return False
    has_bias = any(part.bias is not None for part in head.lora_B.values())
    return not head.lora_variant and not has_bias and not head.fan_in_fan_out


def _lora_forward(layer: Any, scorer: ScoringHead) -> Callable[[Tensor], Tensor]:
    def forward(hidden: Tensor) -> Tensor:
        base = layer.base_layer
        if layer.disable_adapters and layer.merged:
            layer.unmerge()
        live = [name for name in layer.active_adapters if name in layer.lora_A]
        if layer.disable_adapters or layer.merged or not live:
            return scorer.score(hidden, base.weight, base.bias)
        flat = hidden.flatten(0, -2)
        downs = [_down(layer, name, flat) for name in live]
        ups = [layer.lora_B[name].weight for name in live]
        return scorer.score(hidden, base.weight, base.bias, lora=(_join(downs), _join(ups)))

    return forward


def _down(layer: Any, name: str, flat: Tensor) -> Tensor:
    """Return scaling * A(dropout(hidden)), [T, r]."""
    first = layer.lora_A[name]
    x2: Tensor = first(layer.lora_dropout[name](flat.to(first.weight.dtype))) * layer.scaling[name]
    return x2


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
