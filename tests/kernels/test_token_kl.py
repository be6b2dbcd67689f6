"""KL divergence between two heads against dense float64 arithmetic: values, gradients, every way to get them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from logp_cases import Case, draw, pull
from torch import Tensor

from prefopt.errors import RecipeError
from prefopt.kernels import token_kl
from prefopt.kernels.linear_logp import chunked

PAIRS = [
    (Case(1, 1, 1, 1), Case(1, 1, 1, 1)),
    (Case(1, 1, 7, 33), Case(1, 1, 2, 33, bias=True)),
    (Case(9, 4, 5, 11, repeats=True), Case(9, 9, 3, 11)),
    (Case(16, 2, 3, 17, repeats=True, bias=True), Case(16, 5, 3, 17, repeats=True, softcap=2.0)),
    (Case(17, 17, 33, 65, softcap=3.0), Case(17, 17, 8, 65, scale=0.25, bias=True)),
    (Case(31, 31, 13, 127, scale=-0.5, softcap=30.0, bias=True), Case(31, 31, 13, 127, scale=2.0)),
    (Case(10, 10, 6, 31, r=1), Case(10, 10, 6, 31)),
    (Case(40, 13, 9, 50, r=3, repeats=True, bias=True), Case(40, 7, 4, 50, r=2, repeats=True, softcap=5.0)),
    (Case(129, 129, 2, 515, bias=True), Case(129, 129, 1, 515)),
]
"""Policy and reference of one call: same positions and vocabulary, all else may differ."""

WAYS = [("naive", 0), *((mode, rows) for mode in ("recompute", "cached") for rows in (7, 1 << 20))]
"""Back-end or mode, and rows per chunk: an odd few, or all at once."""

Side = tuple[dict[str, Tensor], Tensor | None]


def both(pair: tuple[Case, Case], dtype: torch.dtype = torch.float64) -> tuple[Side, Side]:
    """Draw the inputs of policy and reference: tensors by name, and the row index."""
    sides = []
    for case in pair:
        leaves, _, rows = draw(case, dtype)
        sides.append((leaves, rows))
    return sides[0], sides[1]


def divergence(pair: tuple[Case, Case], policy: Side, reference: Side, way: str = "auto") -> Tensor:
    """Call the op by back-end or, for the chunked one, by mode."""
    found: dict[str, Any] = {"impl": "naive"} if way == "naive" else {"impl": "chunked", "mode": way}
    for side, case, (leaves, rows) in zip(("", "reference_"), pair, (policy, reference), strict=True):
        found[f"{side}bias"], found[f"{side}rows"] = leaves.get("bias"), rows
        found[f"{side}scale"], found[f"{side}softcap"] = case.scale, case.softcap
        found[f"{side}lora"] = (leaves["x2"], leaves["w2"]) if case.r else None
    return token_kl(
        policy[0]["hidden"],
        policy[0]["weight"],
        reference[0]["hidden"],
        reference[0]["weight"],
        **found,
    )


def dense(pair: tuple[Case, Case], policy: Side, reference: Side) -> Tensor:
    """Work it out again from probabilities, position by position, in float64."""
    out = []
    for m in range(pair[0].m):
        logs = []
        for case, (leaves, rows) in zip(pair, (policy, reference), strict=True):
            wide = {name: leaf.double() for name, leaf in leaves.items()}
            row = m if rows is None else int(rows[m])
            z = wide["weight"] @ wide["hidden"][row]
            z = z + wide["w2"] @ wide["x2"][row] if case.r else z
            z = (z + wide["bias"] if case.bias else z) * case.scale
            z = case.softcap * torch.tanh(z / case.softcap) if case.softcap else z
            logs.append((torch.exp(z) / torch.exp(z).sum()).log())
        out.append((logs[1].exp() * (logs[1] - logs[0])).sum())
    return torch.stack(out)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0]}-{pair[1]}")
def test_values_and_gradients_equal_dense_arithmetic(
    pair: tuple[Case, Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every back-end, chunk and gradient; 1e-10 is float64 rounding of sums of 515 terms."""
    monkeypatch.setattr(chunked, "TILE_BYTES", {"cpu": 1, "cuda": 1})
    policy, reference = both(pair)
    expected = dense(pair, policy, reference)
    grads = {"kl": torch.randn(pair[0].m, dtype=torch.float64) * (torch.rand(pair[0].m) > 1 / 3)}
    wanted = pull({"kl": expected}, grads, policy[0])
    for way, chunk_rows in WAYS:
        monkeypatch.setattr(chunked, "MIN_ROWS", chunk_rows)
        kl = divergence(pair, policy, reference, way)
        torch.testing.assert_close(kl, expected, rtol=1e-10, atol=1e-12)
        found = pull({"kl": kl}, grads, policy[0])
        for name in policy[0]:
            torch.testing.assert_close(found[name], wanted[name], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("mode", ["recompute", "cached"])
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_gradcheck(mode: str, softcap: float | None) -> None:
    """Finite differences in float64 agree for every input of the policy."""
    case = Case(4, 3, 4, 6, bias=True, scale=0.8, softcap=softcap, r=2, repeats=True)
    pair = (case, Case(4, 4, 2, 6, bias=True))
    policy, reference = both(pair)
    names = list(policy[0])

    def op(*tensors: Tensor) -> Tensor:
        return divergence(pair, (dict(zip(names, tensors, strict=True)), policy[1]), reference, mode)

    assert torch.autograd.gradcheck(op, list(policy[0].values()))


@pytest.mark.parametrize("r", [0, 2])
def test_frozen_head_gives_the_same_gradient_of_hidden(r: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the head frozen the gradient is made in the forward: any upstream still scales it per row."""
    monkeypatch.setattr(chunked, "TILE_BYTES", {"cpu": 1, "cuda": 1})
    monkeypatch.setattr(chunked, "MIN_ROWS", 7)
    pair = (Case(20, 6, 5, 13, bias=True, scale=1.3, softcap=2.0, r=r, repeats=True), Case(20, 20, 3, 13))
    policy, reference = both(pair)
    trained = {name: leaf for name, leaf in policy[0].items() if name in ("hidden", "x2")}
    for leaf in set(policy[0].values()) - set(trained.values()):
        leaf.requires_grad_(False)
    expected = dense(pair, policy, reference)
    grads = {"kl": torch.randn(20, dtype=torch.float64)}
    wanted = pull({"kl": expected}, grads, trained)
    for way in ("auto", "frozen", "recompute", "cached"):
        kl = divergence(pair, policy, reference, way)
        torch.testing.assert_close(kl, expected, rtol=1e-11, atol=1e-12)
        found = pull({"kl": kl}, grads, trained)
        for name in trained:
            torch.testing.assert_close(found[name], wanted[name], rtol=1e-10, atol=1e-12)


def test_no_gradient_reaches_the_reference() -> None:
    """The reference is a constant, even where its tensors want a gradient."""
    pair = (Case(5, 5, 4, 9), Case(5, 5, 3, 9, bias=True, r=1))
    policy, reference = both(pair)
    for way in ("naive", "recompute", "cached"):
        kl = divergence(pair, policy, reference, way).sum()
        found = torch.autograd.grad(kl, [*policy[0].values(), *reference[0].values()], allow_unused=True)
        assert all(grad is not None for grad in found[:2])
        assert all(grad is None for grad in found[2:])


def test_three_tokens_by_hand() -> None:
    """Reference 1/2, 1/4, 1/4 and policy 1/8, 2/8, 5/8: 1/2 ln 4 + 1/4 ln 1 + 1/4 ln 0.4 = 0.464074."""
    one = torch.ones(1, 1)
    policy = torch.tensor([[1.0], [2.0], [5.0]]).log()
    reference = torch.tensor([[2.0], [1.0], [1.0]]).log()
    for impl in ("naive", "chunked"):
        kl = token_kl(one, policy, one, reference, impl=impl)
        assert kl.item() == pytest.approx(math.log(4) / 2 + math.log(0.4) / 4, abs=1e-7)
        assert kl.item() == pytest.approx(0.464074, abs=1e-6)


def test_a_head_against_itself_is_exactly_zero() -> None:
    """Equal logits differ by 0 in every token, so nothing is left to round."""
    leaves, _, _ = draw(Case(30, 30, 16, 300), torch.float32)
    hidden, weight = leaves["hidden"], leaves["weight"]
    assert token_kl(hidden, weight, hidden, weight).tolist() == [0.0] * 30


@pytest.mark.parametrize("way", ["naive", "recompute", "cached"])
@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [
        (torch.float32, 2e-5),  # sums of 300 float32 products
        (torch.bfloat16, 1e-2),  # gradients are rounded once to 8 bits
        (torch.float16, 2e-3),  # and to 11 bits
    ],
    ids=str,
)
def test_half_inputs_are_summed_in_float32(dtype: torch.dtype, rtol: float, way: str) -> None:
    """Values are float32 and as exact as float32 allows; gradients come back in the inputs' dtype."""
    pair = (Case(40, 9, 32, 300, bias=True, repeats=True, r=2), Case(40, 40, 16, 300))
    policy, reference = both(pair, dtype)
    expected = dense(pair, policy, reference)
    kl = divergence(pair, policy, reference, way)
    assert kl.dtype == torch.float32
    torch.testing.assert_close(kl.double(), expected, rtol=1e-5, atol=1e-5)
    grads = {"kl": torch.randn(40)}
    wanted, found = pull({"kl": expected}, grads, policy[0]), pull({"kl": kl}, grads, policy[0])
    for name in policy[0]:
        assert found[name].dtype == dtype
        scale = float(wanted[name].abs().max())
        torch.testing.assert_close(found[name].double(), wanted[name].double(), rtol=rtol, atol=rtol * scale)


@pytest.mark.parametrize("gap", [1e-3, 1e-2])
def test_close_heads_lose_a_millionth_of_a_nat_in_float32(gap: float) -> None:
    """Logits of up to 45 round by 2e-6 each; what is lost of the divergence stays below that."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(16, 64, generator=generator, dtype=torch.float64)
    weight = 1.25 * torch.randn(20_000, 64, generator=generator, dtype=torch.float64)
    moved = hidden + gap * torch.randn(16, 64, generator=generator, dtype=torch.float64)
    truth = token_kl(moved, weight, hidden, weight, impl="naive")
    kl = token_kl(*(part.float() for part in (moved, weight, hidden, weight)))
    assert (kl.double() - truth).abs().max() < 2e-6 + 1e-5 * truth.max()


def test_one_wider_input_makes_all_of_it_wide() -> None:
    """A float64 policy against a float32 reference is worked out in float64, whichever side it is."""
    policy, reference = both((Case(4, 4, 3, 7), Case(4, 4, 2, 7)))
    narrow = {name: leaf.detach().float() for name, leaf in reference[0].items()}
    widened = {name: leaf.double() for name, leaf in narrow.items()}
    pair = (Case(4, 4, 3, 7), Case(4, 4, 2, 7))
    expected = dense(pair, policy, (widened, None))
    torch.testing.assert_close(divergence(pair, policy, (narrow, None)), expected, rtol=1e-12, atol=1e-13)
    back = dense(pair, (widened, None), policy)
    torch.testing.assert_close(
        divergence(pair, (narrow, None), policy, "no_grad"), back, rtol=1e-12, atol=1e-13
    )


@pytest.mark.parametrize("way", ["naive", "recompute", "cached"])
def test_logits_of_120_and_masked_vocabulary_stay_finite(way: str) -> None:
    """exp(120) overflows float32 and a bias of -inf on both heads is a token that neither can take."""
    bias = torch.tensor([0.0, 0.0, 0.0, -math.inf])
    hidden = torch.tensor([[120.0], [-120.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [0.5], [-1.0], [0.0]], requires_grad=True)
    other = torch.tensor([[0.1], [0.1]])
    pair = (Case(2, 2, 1, 4, bias=True), Case(2, 2, 1, 4, bias=True))
    policy = {"hidden": hidden, "weight": weight, "bias": bias}
    reference = {"hidden": other, "weight": weight.detach(), "bias": bias}
    kl = divergence(pair, (policy, None), (reference, None), way)
    # the policy gives all to one token, the reference about a third to each: (60 + 240) / 3 nats less ln 3
    assert kl.isfinite().all() and (kl > 50).all()
    grads = torch.autograd.grad(kl.sum(), (hidden, weight))
    assert all(grad.isfinite().all() for grad in grads)


def test_gradient_of_logits_sums_to_zero_over_the_vocabulary() -> None:
    """Probabilities do not change when all logits move together, so the bias gradient adds up to zero."""
    pair = (Case(30, 30, 4, 50, bias=True), Case(30, 30, 4, 50))
    policy, reference = both(pair)
    kl = divergence(pair, policy, reference)
    (grad,) = torch.autograd.grad((kl * torch.randn(30, dtype=torch.float64)).sum(), policy[0]["bias"])
    # 30 rows of float64
    assert abs(grad.sum().item()) < 1e-13


@pytest.mark.parametrize("mode", ["recompute", "cached", "frozen"])
def test_a_second_backward_through_one_graph_is_the_same(mode: str) -> None:
    """Nothing that the first backward reads is overwritten."""
    pair = (Case(9, 9, 4, 12), Case(9, 9, 4, 12))
    policy, reference = both(pair)
    policy[0]["weight"].requires_grad_(mode != "frozen")
    trained = [leaf for leaf in policy[0].values() if leaf.requires_grad]
    kl = divergence(pair, policy, reference, mode)
    first = torch.autograd.grad(kl.sum(), trained, retain_graph=True)
    second = torch.autograd.grad(kl.sum(), trained)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_no_rows_at_all_still_give_gradients() -> None:
    """Zero rows keep the graph alive with zero gradients: a data-parallel rank may hold no target."""
    leaves, _, _ = draw(Case(3, 3, 2, 5))
    rows = torch.empty(0, dtype=torch.int64)
    for mode in ("recompute", "cached"):
        kl = token_kl(
            leaves["hidden"], leaves["weight"], torch.empty(0, 2), torch.randn(5, 2), rows=rows, mode=mode
        )
        grads = torch.autograd.grad(kl.sum(), list(leaves.values()))
        assert kl.shape == (0,)
        assert all((grad == 0).all() for grad in grads)


H, W = torch.zeros(2, 3), torch.zeros(5, 3)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"impl": "fused"}, "impl='fused'. Use 'auto' or one of naive, chunked"),
        ({"mode": "fast"}, "mode='fast'"),
        ({"hidden": torch.zeros(2, 4)}, r"hidden \[2, 4\] and weight \[5, 3\]"),
        ({"reference_hidden": torch.zeros(2, 4)}, r"reference_hidden \[2, 4\]"),
        ({"reference_weight": torch.zeros(6, 3)}, "has 5 tokens, the reference's 6"),
        ({"reference_hidden": torch.zeros(4, 3)}, "2 rows of the policy meet 4"),
        ({"rows": torch.zeros(2)}, "float32. Give int64"),
        ({"reference_bias": torch.zeros(4)}, "reference_bias"),
        ({"lora": (torch.zeros(2, 2), torch.zeros(5, 3))}, "lora"),
        ({"weight": torch.zeros(5, 3, requires_grad=True), "mode": "frozen"}, "the head is trained"),
    ],
)
def test_refuses_what_does_not_fit(kwargs: dict[str, object], message: str) -> None:
    """Each mistake is one line that names the value and the way out."""
    arguments = {"hidden": H, "weight": W, "reference_hidden": H, "reference_weight": W, **kwargs}
    with pytest.raises(ValueError, match=message) as caught:
        token_kl(**arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, RecipeError) == ("there is no" in str(caught.value))
