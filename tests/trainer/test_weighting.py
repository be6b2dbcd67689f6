"""Weights from activations worked by hand, and the module that learns them."""

from __future__ import annotations

import math

import pytest
import torch

from prefopt.trainer.weighting import TokenMasks, activation_weights, mask_stats, needs_layers

LENGTHS = (3, 1, 2)
LAYERS = [
    torch.tensor([1.0, 3.0, 2.0, 5.0, 2.0, 2.0]),
    torch.tensor([0.0, 0.0, 4.0, 1.0, 1.0, 3.0]),
]
"""Activations of two layers over answers of three, one and two tokens."""


def test_each_layer_is_rescaled_within_each_answer_and_then_averaged() -> None:
    """[0, 1, 1/2] and [0, 0, 1]; a lone token 1; [1, 1], for the layer does not tell the two apart, and [0, 1]."""
    weights = activation_weights(LAYERS, LENGTHS)
    assert weights.tolist() == pytest.approx([0.0, 0.5, 0.75, 1.0, 0.5, 1.0])


def test_normalising_first_would_change_nothing() -> None:
    """Min and max move along with mean and deviation, in every answer of its own."""
    parts = [layer.double().split(LENGTHS) for layer in LAYERS]
    normal = [torch.cat([(p - p.mean()) / (p.std(correction=0) + 1e-12) for p in part]) for part in parts]
    torch.testing.assert_close(
        activation_weights(normal, LENGTHS).float(), activation_weights(LAYERS, LENGTHS)
    )


def test_only_what_is_asked_for_is_kept_of_a_layer() -> None:
    """Averages for activations, in float32 at least; whole states for masks; nothing for the rest."""
    hidden = torch.tensor([[1.0, 3.0], [2.0, 2.5]]).bfloat16()
    average, whole = needs_layers(("kl", "activation")), needs_layers(("activation", "reward_mask"))
    assert average is not None and whole is not None
    assert average(hidden).tolist() == [2.0, 2.25] and average(hidden).dtype == torch.float32
    assert whole(hidden).shape == (2, 2)
    assert needs_layers(("kl", "weight")) is None


def test_a_mask_by_hand() -> None:
    """Normalised [-1, 1] by head (0, 2) + 1 gives 3, by (1, 0) gives -1, cut to 0; mixed 3 * 0.5 + 0 * 4."""
    masks = TokenMasks(2, 2, ("reward_mask",), dropout=0.0)
    stack = masks.stacks["reward_mask"]
    with torch.no_grad():
        for head, weight, bias in zip(stack.heads, ([[0.0, 2.0]], [[1.0, 0.0]]), (1.0, 0.0), strict=True):
            head.weight.copy_(torch.tensor(weight))
            head.bias.fill_(bias)
        stack.mixer.weight.copy_(torch.tensor([[0.5, 4.0]]))
    layers = [torch.tensor([[0.0, 10.0], [10.0, 0.0]])] * 2
    # normalised, the second token is [1, -1]: 1 - 2 cut to 0, and 1 by the other head: 4
    assert masks(layers)["reward_mask"].tolist() == pytest.approx([1.5, 4.0], rel=1e-6)


def test_masks_are_never_negative_and_only_their_own_weights_learn() -> None:
    """The hidden states are the reference's, which nothing trains."""
    torch.manual_seed(0)
    masks = TokenMasks(3, 8, ("kl", "reward_mask", "kl_mask"))
    layers = [torch.randn(50, 8).bfloat16() for _ in range(3)]
    found = mask_stats(("reward_mask", "kl_mask"), layers, (50,), masks)
    assert set(found) == {"reward_mask", "kl_mask"}
    for value in found.values():
        assert value.shape == (50,) and value.dtype == torch.float32 and (value >= 0).all()
    assert not torch.equal(found["reward_mask"], found["kl_mask"])
    sum(found.values()).sum().backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in masks.parameters())


def test_dropout_acts_in_training_only() -> None:
    """A share of 0.5 drops about half; in evaluation two calls agree."""
    torch.manual_seed(0)
    masks = TokenMasks(2, 4, ("reward_mask",), dropout=0.5)
    with torch.no_grad():
        for head in masks.stacks["reward_mask"].heads:
            head.bias.fill_(5.0)  # so that no cut is at zero by itself
        masks.stacks["reward_mask"].mixer.weight.fill_(1.0)
    layers = [torch.randn(400, 4) for _ in range(2)]
    share = (masks(layers)["reward_mask"] == 0).float().mean().item()
    # dropped at the end, or both parts before it: 1 - 0.5 * (1 - 0.25) = 0.625; deviation of 400 draws 0.024
    assert share == pytest.approx(0.625, abs=0.08)
    masks.eval()
    assert torch.equal(masks(layers)["reward_mask"], masks(layers)["reward_mask"])


def test_weights_do_not_depend_on_how_answers_are_batched() -> None:
    """Each answer alone gives what it gives among others."""
    together = activation_weights(LAYERS, LENGTHS).split(LENGTHS)
    for at, length in enumerate(LENGTHS):
        low = sum(LENGTHS[:at])
        alone = activation_weights([layer[low : low + length] for layer in LAYERS], (length,))
        assert torch.equal(alone, together[at])
    assert not math.isnan(sum(part.sum().item() for part in together))
