"""Token weights made from the reference's hidden states: rescaled activations, or a small trained module."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn

from prefopt.ragged import Lengths
from prefopt.types import LEARNED_MASKS, MASK_STATS


def needs_layers(stats: Collection[str]) -> Callable[[Tensor], Tensor] | None:
    """Return what to keep of every layer's hidden states [M, D] for ``stats``; None where nothing is needed."""
    if set(LEARNED_MASKS) & set(stats):
        return torch.Tensor.detach
    return mean_activation if "activation" in stats else None


def mean_activation(hidden: Tensor) -> Tensor:
    """Average hidden states [M, D] over the width -> [M], in float32 or wider."""
    return hidden.to(torch.promote_types(hidden.dtype, torch.float32)).mean(-1)


def mask_stats(
    stats: Collection[str], layers: Sequence[Tensor], lengths: Sequence[int], masks: TokenMasks | None
) -> dict[str, Tensor]:
    """Return those of ``types.MASK_STATS`` that are among ``stats``, each [M].

    Args:
        stats: names.
        layers: of every decoder layer, what ``needs_layers`` keeps.
        lengths: [S] scored tokens per response.
        masks: makes those of ``types.LEARNED_MASKS``.
    """
    found: dict[str, Tensor] = {}
    if "activation" in stats:
        averaged = [layer if layer.dim() == 1 else mean_activation(layer) for layer in layers]
        found["activation"] = activation_weights(averaged, lengths)
    if masks is not None:
        found |= {name: value for name, value in masks(layers).items() if name in stats}
    assert found.keys() == set(MASK_STATS) & set(stats), "a mask is asked for, but there is no module"
    return found


def activation_weights(activations: Sequence[Tensor], lengths: Sequence[int]) -> Tensor:
    """Turn the activations of each response into weights from 0 to 1, [M].

    Each layer is rescaled so that its least token of a response weighs 0 and its largest 1; then layers are
    averaged. (A z-normalisation before that would change nothing.) A layer that tells no token of a
    response from another gives them all 1.

    Args:
        activations: of every layer, [M], one number per scored token.
        lengths: [S] scored tokens per response.

    Source:
        Christopoulou, Cardenas, Lampouras, Bou-Ammar and Wang, "SparsePO: Controlling Preference Alignment
        of LLMs via Sparse Token Masks", 2024, arXiv 2410.05102, MaPO. The authors' code takes activations
        inside attention and MLP and the logits too; here they are the outputs of the layers.
    """
    values = torch.stack(list(activations), 1)  # [M, layers]
    counts = Lengths.of(lengths).on(values.device)

    def spread(reduce: str) -> Tensor:
        extreme = torch.segment_reduce(values, reduce, lengths=counts, axis=0, unsafe=True)  # [S, layers]
        return extreme.repeat_interleave(counts, dim=0, output_size=values.shape[0])

    least, largest = spread("min"), spread("max")
    extent = largest - least
    scaled = (values - least) / torch.where(extent > 0, extent, 1.0)
    return torch.where(extent > 0, scaled, 1.0).mean(1)


class TokenMasks(nn.Module):
    """Weigh every token by a function of the reference's hidden states that is trained along with the policy.

    Each layer's hidden state is normalised, mapped to one number and cut at zero; a mix of these, cut at
    zero again, is the token's weight. There is one such stack for every mask. The mix starts as the average:
    drawn at random it could be negative for every token, and a mask of zeros never learns.

    Args:
        num_layers: decoder layers of the reference.
        width: D, of its hidden states.
        stats: names, of which those in ``types.LEARNED_MASKS`` are made.
        dropout: share of numbers that are dropped after each cut, in training.

    Source:
        Christopoulou, Cardenas, Lampouras, Bou-Ammar and Wang, 2024, arXiv 2410.05102, SparsePO; shape and
        dropout as in the authors' code.
    """

    def __init__(self, num_layers: int, width: int, stats: Collection[str], dropout: float = 0.01) -> None:
        super().__init__()
        names = [name for name in LEARNED_MASKS if name in stats]
        self.stacks = nn.ModuleDict({name: _Stack(num_layers, width, dropout) for name in names})

    def forward(self, layers: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return name -> [M] from every layer's hidden states, [M, D] each."""
        return {name: stack(layers) for name, stack in self.stacks.items()}


class _Stack(nn.Module):
    def __init__(self, num_layers: int, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleList(nn.Linear(width, 1) for _ in range(num_layers))
        self.mixer = nn.Linear(num_layers, 1, bias=False)
        nn.init.constant_(self.mixer.weight, 1 / num_layers)
        self.dropout = nn.Dropout(dropout)

    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        dtype = self.mixer.weight.dtype
        parts = [
            self.dropout(torch.relu(head(self.norm(layer.to(dtype)))))
            for head, layer in zip(self.heads, layers, strict=True)
        ]
        weight: Tensor = self.dropout(torch.relu(self.mixer(torch.cat(parts, -1))))
        return weight.squeeze(-1)
