"""The log-prob op against dense float64 arithmetic: every output, every gradient, every way to get it."""

from __future__ import annotations

import math

import pytest
import torch
from logp_cases import CASES, Case, dense, draw, pull, upstream
from torch import Tensor

from prefopt.errors import RecipeError
from prefopt.kernels import TokenLogps, token_logps
from prefopt.kernels.linear_logp import chunked
from prefopt.types import STATS

SMOOTH = tuple(name for name in STATS if name != "is_top1")
BACKENDS = ("naive", "recompute", "cached")


WAYS = [("naive", 0), *((mode, rows) for mode in ("recompute", "cached") for rows in (7, 1 << 20))]
"""Back-end or mode, and rows per chunk: an odd few, or all at once."""


def score(
    case: Case,
    leaves: dict[str, Tensor],
    targets: Tensor,
    rows: Tensor | None,
    backend: str,
    stats: tuple[str, ...],
) -> TokenLogps:
    """Call the op by back-end or, for the chunked one, by mode."""
    return token_logps(
        leaves["hidden"],
        leaves["weight"],
        targets,
        bias=leaves.get("bias"),
        scale=case.scale,
        softcap=case.softcap,
        rows=rows,
        lora=(leaves["x2"], leaves["w2"]) if case.r else None,
        stats=stats,
        impl="naive" if backend == "naive" else "chunked",
        mode="auto" if backend == "naive" else backend,
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_and_gradients_equal_dense_arithmetic(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """All five statistics and five gradients at once; 1e-10 is float64 rounding of sums of 1000 terms."""
    monkeypatch.setattr(chunked, "TILE_BYTES", {"cpu": 1, "cuda": 1})
    leaves, targets, rows = draw(case)
    expected = dense(case, leaves, targets, rows)
    grads = upstream({name: expected[name] for name in ("logps", *SMOOTH)})
    wanted = pull(expected, grads, leaves)
    for backend, chunk_rows in WAYS:
        monkeypatch.setattr(chunked, "MIN_ROWS", chunk_rows)
        result = score(case, leaves, targets, rows, backend, STATS)
        values = {name: getattr(result, name) for name in expected}
        for name, value in values.items():
            close(value, expected[name], f"{backend} {chunk_rows} {name}", rtol=1e-10)
        found = pull(values, grads, leaves)
        for name in leaves:
            close(found[name], wanted[name], f"{backend} {chunk_rows} d {name}", rtol=1e-9)


def close(actual: Tensor, expected: Tensor, place: str, rtol: float) -> None:
    """Compare, and name what differs."""
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=1e-11, msg=lambda text: f"{place}: {text}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stat", ["logps", *SMOOTH])
def test_one_output_alone_has_its_own_gradient(stat: str, backend: str) -> None:
    """Asked and differentiated one at a time, so that no term can borrow another's."""
    for case in (CASES[6], CASES[8], CASES[16]):
        leaves, targets, rows = draw(case)
        expected = dense(case, leaves, targets, rows)
        result = score(case, leaves, targets, rows, backend, () if stat == "logps" else (stat,))
        grads = upstream({stat: expected[stat]})
        wanted, found = pull(expected, grads, leaves), pull({stat: getattr(result, stat)}, grads, leaves)
        for name in leaves:
            torch.testing.assert_close(found[name], wanted[name], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("mode", ["recompute", "cached"])
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_gradcheck(mode: str, softcap: float | None) -> None:
    """Finite differences in float64 agree for every output and input."""
    hidden, weight = torch.randn(3, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    bias, x2 = torch.randn(6, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    w2 = torch.randn(6, 2, dtype=torch.float64)
    leaves = [leaf.requires_grad_() for leaf in (hidden, weight, bias, x2, w2)]
    targets, rows = torch.tensor([0, 5, -100, 2]), torch.tensor([0, 2, 1, 2])

    def op(h: Tensor, w: Tensor, b: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        result = token_logps(
            h, w, targets, bias=b, scale=0.8, softcap=softcap, rows=rows, lora=(x, y), stats=SMOOTH, mode=mode
        )
        return tuple(getattr(result, name) for name in ("logps", *SMOOTH))

    assert torch.autograd.gradcheck(op, leaves)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("r", [0, 2])
def test_frozen_head_gives_the_same_gradient_of_hidden(softcap: float | None, r: int) -> None:
    """With the head frozen the gradient is made in the forward: any upstream still scales it per row."""
    case = Case(20, 6, 5, 13, bias=True, scale=1.3, softcap=softcap, r=r, repeats=True, ignored=4)
    leaves, targets, rows = draw(case)
    for name in ("weight", "bias", "w2"):
        if name in leaves:
            leaves[name].requires_grad_(False)
    trained = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    expected = dense(case, leaves, targets, rows)
    grads = upstream({"logps": expected["logps"]})
    wanted = pull(expected, grads, trained)
    for mode in ("auto", "frozen", "recompute", "cached"):
        result = score(case, leaves, targets, rows, mode, ("is_top1",))
        torch.testing.assert_close(result.logps, expected["logps"], rtol=1e-11, atol=1e-12)
        found = pull({"logps": result.logps}, grads, trained)
        for name in trained:
            torch.testing.assert_close(found[name], wanted[name], rtol=1e-10, atol=1e-12)


def test_auto_picks_the_cheapest_way() -> None:
    """Frozen heads skip the backward, small problems keep their matrix, large ones compute it twice."""
    leaves, _, _ = draw(Case(4, 4, 3, 5))
    inputs = chunked.HeadInputs(leaves["hidden"], leaves["weight"], None, None, None, None)
    assert chunked.chunked_mode(inputs, (), "auto") == "cached"
    with torch.no_grad():
        assert chunked.chunked_mode(inputs, (), "auto") == "no_grad"
    leaves["weight"].requires_grad_(False)
    assert chunked.chunked_mode(inputs, ("is_top1",), "auto") == "frozen"
    assert chunked.chunked_mode(inputs, ("entropy",), "auto") == "cached"
    large = torch.empty(1, 3).expand(100_000, 3), torch.empty(1, 3).expand(100_000, 3)
    inputs = chunked.HeadInputs(large[0], large[1].requires_grad_(), None, None, None, None)
    assert chunked.chunked_mode(inputs, (), "auto") == "recompute"


@pytest.mark.parametrize("backend", BACKENDS)
def test_ignored_rows_may_hold_nan(backend: str) -> None:
    """A -100 target costs exactly nothing, even where the hidden state behind it is NaN."""
    case = Case(6, 6, 4, 9, bias=True)
    leaves, targets, _ = draw(case)
    targets[1], targets[4] = -100, -100
    with torch.no_grad():
        leaves["hidden"][1], leaves["hidden"][4] = float("nan"), float("inf")
    result = score(case, leaves, targets, None, backend, STATS)
    values = {name: getattr(result, name) for name in ("logps", *SMOOTH)}
    found = pull(values, {name: torch.randn(6) for name in values}, leaves)
    for name, value in values.items():
        assert value[[1, 4]].tolist() == [0.0, 0.0], name
        assert value.isfinite().all()
    assert found["hidden"][[1, 4]].abs().sum() == 0
    assert all(grad.isfinite().all() for grad in found.values())


def test_ignored_rows_are_masked_without_reading_targets_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of devices other than the CPU: zeros in, zeros out, with NaN behind ignored rows."""
    import prefopt.kernels.linear_logp as door

    monkeypatch.setattr(door, "_score_kept", door._score_masked)
    for backend in BACKENDS:
        test_ignored_rows_may_hold_nan(backend)
        for case in (CASES[14], CASES[17], CASES[18], CASES[21]):
            leaves, targets, rows = draw(case)
            expected = dense(case, leaves, targets, rows)
            result = score(case, leaves, targets, rows, backend, STATS)
            values = {name: getattr(result, name) for name in expected}
            grads = upstream({name: expected[name] for name in ("logps", *SMOOTH)})
            wanted, found = pull(expected, grads, leaves), pull(values, grads, leaves)
            for name in expected:
                torch.testing.assert_close(values[name], expected[name], rtol=1e-10, atol=1e-11)
            for name in leaves:
                torch.testing.assert_close(found[name], wanted[name], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [
        (torch.float32, 2e-5),  # sums of 300 float32 products
        (torch.bfloat16, 1e-2),  # gradients are rounded once to 8 bits
        (torch.float16, 2e-3),  # and to 11 bits
    ],
    ids=str,
)
def test_half_inputs_are_summed_in_float32(dtype: torch.dtype, rtol: float, backend: str) -> None:
    """Outputs are float32 and as exact as float32 allows; gradients come back in the inputs' dtype."""
    case = Case(40, 40, 32, 300, bias=True, repeats=True, r=2)
    leaves, targets, rows = draw(case, dtype)
    expected = dense(case, leaves, targets, rows)
    result = score(case, leaves, targets, rows, backend, STATS)
    values = {name: getattr(result, name) for name in expected}
    for name, value in values.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), expected[name], rtol=2e-5, atol=2e-5)
    grads = upstream({"logps": expected["logps"], "log_sum_p2": expected["log_sum_p2"]})
    wanted, found = pull(expected, grads, leaves), pull(values, grads, leaves)
    for name in leaves:
        assert found[name].dtype == dtype
        scale = float(wanted[name].abs().max())
        torch.testing.assert_close(found[name].double(), wanted[name].double(), rtol=rtol, atol=rtol * scale)


def test_weight_wider_than_hidden_as_under_autocast() -> None:
    """bfloat16 hidden states meet a float32 head; autocast does not round the logits."""
    hidden = torch.randn(5, 16).bfloat16().requires_grad_()
    weight = torch.randn(40, 16).requires_grad_()
    targets = torch.randint(0, 40, (5,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = token_logps(hidden, weight, targets)
        truth = token_logps(hidden, weight, targets, impl="naive")
    torch.testing.assert_close(result.logps, truth.logps, rtol=1e-5, atol=1e-5)
    grads = torch.autograd.grad(result.logps.sum(), (hidden, weight))
    assert [grad.dtype for grad in grads] == [torch.bfloat16, torch.float32]


def test_three_tokens_by_hand() -> None:
    """Logits ln 1, ln 2, ln 5: p = 1/8, 2/8, 5/8; sum of squares 30/64; mean logit ln(10) / 3."""
    hidden = torch.ones(1, 1)
    weight = torch.tensor([[1.0], [2.0], [5.0]]).log()
    result = token_logps(hidden, weight, torch.tensor([1]), stats=STATS)
    assert result.logps.item() == pytest.approx(math.log(2 / 8), abs=1e-6)
    assert result.logsumexp is not None and result.logsumexp.item() == pytest.approx(math.log(8), abs=1e-6)
    entropy = -sum(p * math.log(p) for p in (1 / 8, 2 / 8, 5 / 8))
    assert result.entropy is not None and result.entropy.item() == pytest.approx(entropy, abs=1e-6)
    assert result.log_sum_p2 is not None
    assert result.log_sum_p2.item() == pytest.approx(math.log(30 / 64), abs=1e-6)
    assert result.mean_logit is not None and result.mean_logit.item() == pytest.approx(
        math.log(10) / 3, abs=1e-6
    )
    assert result.is_top1 is not None and result.is_top1.item() == 0.0


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_of_120_and_masked_vocabulary_stay_finite(backend: str) -> None:
    """exp(120) overflows float32 and a bias of -inf has probability 0; neither may leak NaN."""
    hidden = torch.tensor([[120.0], [-120.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [0.5], [-1.0], [0.0]], requires_grad=True)
    bias = torch.tensor([0.0, 0.0, 0.0, -math.inf])
    case = Case(2, 2, 1, 4, bias=True)
    stats = ("entropy", "log_sum_p2", "logsumexp")
    result = score(
        case, {"hidden": hidden, "weight": weight, "bias": bias}, torch.tensor([0, 0]), None, backend, stats
    )
    assert result.logps.tolist() == [0.0, -240.0]
    assert result.entropy is not None and result.log_sum_p2 is not None
    total = result.logps + result.entropy + result.log_sum_p2
    grads = torch.autograd.grad(total.sum(), (hidden, weight))
    assert all(grad.isfinite().all() for grad in grads)


def test_label_gradient_survives_certainty() -> None:
    """At p = 1 - 2e-6 the label's gradient is p - 1 = -2e-6, not a difference of rounded halves."""
    hidden = torch.ones(1, 1, requires_grad=True)
    gap = math.log(5e5)
    weight = torch.tensor([[gap], [0.0]], requires_grad=True)
    for mode in ("recompute", "cached"):
        (grad,) = torch.autograd.grad(token_logps(hidden, weight, torch.tensor([0]), mode=mode).logps, weight)
        # float32 rounds p and its exponent by 6e-8 each
        assert grad[0].item() == pytest.approx(2e-6, abs=1.2e-7)


@pytest.mark.parametrize("mode", ["recompute", "cached"])
def test_a_second_backward_through_one_graph_is_the_same(mode: str) -> None:
    """The kept matrix is overwritten by the first backward; the second must not read the remains."""
    leaves, targets, _ = draw(Case(9, 9, 4, 12))
    result = token_logps(leaves["hidden"], leaves["weight"], targets, stats=("entropy",), mode=mode)
    assert result.entropy is not None
    total = (result.logps - result.entropy).sum()
    first = torch.autograd.grad(total, list(leaves.values()), retain_graph=True)
    second = torch.autograd.grad(total, list(leaves.values()))
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_gradient_of_logits_sums_to_zero_over_the_vocabulary() -> None:
    """Log-probs do not change when all logits move together, so the bias gradient adds up to zero."""
    leaves, targets, _ = draw(Case(30, 30, 4, 50, bias=True))
    result = token_logps(leaves["hidden"], leaves["weight"], targets, bias=leaves["bias"])
    (grad,) = torch.autograd.grad((result.logps * torch.randn(30, dtype=torch.float64)).sum(), leaves["bias"])
    # 30 rows of float64
    assert abs(grad.sum().item()) < 1e-13


def test_nothing_is_computed_that_was_not_asked_for() -> None:
    """Only the wanted fields are filled, in whatever order they are named."""
    leaves, targets, _ = draw(Case(3, 3, 2, 5))
    result = token_logps(leaves["hidden"], leaves["weight"], targets, stats=("mean_logit", "logsumexp"))
    assert result.entropy is None and result.log_sum_p2 is None and result.is_top1 is None
    assert result.logsumexp is not None and result.mean_logit is not None
    assert (result.logsumexp > result.mean_logit).all()


def test_no_targets_at_all_still_give_gradients() -> None:
    """Zero rows keep the graph alive with zero gradients: a data-parallel rank may hold no target."""
    leaves, _, _ = draw(Case(3, 3, 2, 5))
    for mode in ("recompute", "cached"):
        logps = token_logps(leaves["hidden"], leaves["weight"], torch.full((3,), -100), mode=mode).logps
        grads = torch.autograd.grad(logps.sum(), list(leaves.values()))
        assert logps.tolist() == [0.0] * 3
        assert all((grad == 0).all() for grad in grads)


H, W, T = torch.zeros(2, 3), torch.zeros(5, 3), torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"impl": "triton"}, "impl='triton'. Use 'auto' or one of naive, chunked, fused"),
        ({"impl": "fused"}, r"impl='fused' needs a GPU but hidden is on cpu. Use impl='auto' or 'chunked'\."),
        ({"impl": "fused", "weight": torch.zeros(5, 3).double()}, "weight is torch.float64"),
        ({"mode": "fast"}, "mode='fast'"),
        ({"stats": ("entrpy",)}, "statistic 'entrpy'"),
        ({"hidden": torch.zeros(2, 4)}, r"hidden \[2, 4\] and weight \[5, 3\]"),
        ({"targets": torch.zeros(3, dtype=torch.int64)}, "for \\[2\\] scored rows"),
        ({"targets": torch.zeros(2)}, "float32"),
        ({"targets": torch.tensor([0, 5])}, r"lie in \[0, 5\] but the head has 5 rows"),
        ({"targets": torch.tensor([0, -1])}, r"lie in \[-1, 0\]"),
        ({"bias": torch.zeros(4)}, "bias"),
        ({"lora": (torch.zeros(2, 2), torch.zeros(5, 3))}, "lora"),
        ({"weight": torch.zeros(5, 3, requires_grad=True), "mode": "frozen"}, "the head is trained"),
        ({"mode": "frozen", "stats": ("entropy",)}, "carry gradients"),
    ],
)
def test_refuses_what_does_not_fit(
    kwargs: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each mistake is one line that names the value and the way out."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    arguments = {"hidden": H, "weight": W, "targets": T, **kwargs}
    with pytest.raises(ValueError, match=message) as caught:
        token_logps(**arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    is_name = "there is no" in str(caught.value)
    assert isinstance(caught.value, RecipeError) == is_name
