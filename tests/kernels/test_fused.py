"""The Triton kernels, run by Triton's interpreter on the CPU, against dense float64 arithmetic.

Run with ``TRITON_INTERPRET=1 pytest -m interpret``. Blocks are tiny here, so that small problems have
many of them and odd edges everywhere.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from logp_cases import CASES, Case, dense, draw, pull, upstream
from torch import Tensor
from torch.nn import functional as F

from prefopt.kernels import TokenLogps, token_logps, which_impl
from prefopt.kernels.linear_logp.plans import Blocks, TilePlan
from prefopt.types import STATS

pytest.importorskip("triton", reason="needs triton")
pytestmark = pytest.mark.interpret

SMOOTH = tuple(name for name in STATS if name != "is_top1")

POINTERS = Blocks(rows=16, vocab=32, depth=16, warps=4, stages=2, group=2)
COPIES = replace(POINTERS, tma=True)
FOLD = Blocks(rows=4, vocab=64, depth=16, warps=4, stages=1, group=2)
PLANS = {
    "pointers": TilePlan("fused", "fused", POINTERS, POINTERS, FOLD),
    "copies": TilePlan("fused", "fused", COPIES, COPIES, replace(FOLD, vocab=16)),
    "tile": TilePlan("tile", "tile", POINTERS, POINTERS, FOLD),
}
"""Logits from pointer loads, from the copy engine, and from the library's products."""
MANY_LOGITS = 10_000
"""Cases beyond this get larger blocks: the interpreter takes milliseconds for each."""

EDGES = [
    Case(16, 16, 16, 32),  # exactly one block
    Case(15, 15, 15, 31),
    Case(17, 17, 17, 33, bias=True),
    Case(1, 1, 16, 97),
    Case(2, 2, 33, 64, scale=0.5),
    Case(32, 3, 8, 32, repeats=True),
    Case(33, 33, 24, 65, softcap=2.0, bias=True, ignored=20),
    Case(5, 5, 16, 3, r=16),
    Case(6, 6, 16, 40, r=17, bias=True),
    Case(18, 7, 40, 100, r=5, repeats=True, bias=True, scale=0.6, softcap=4.0, ignored=5),
    Case(48, 48, 4, 129, ignored=47),
    Case(3, 3, 48, 300, scale=0.3),
]
ALL_CASES = [*CASES, *EDGES]
WAYS = [("recompute", "pointers"), ("cached", "copies"), ("recompute", "tile")]


@pytest.fixture(autouse=True)
def _interpreter() -> None:
    """Refuse to pass without having run a kernel."""
    assert os.environ.get("TRITON_INTERPRET") == "1", (
        "run this lane as TRITON_INTERPRET=1 pytest -m interpret"
    )


UsePlan = Callable[..., None]


@pytest.fixture
def use_plan(monkeypatch: pytest.MonkeyPatch) -> UsePlan:
    """Choose a plan by name, and chunks of eight rows or of 64 tokens wherever there are chunks."""
    from prefopt.kernels.linear_logp import fused_op, fused_passes

    def use(name: str, factor: int = 1) -> None:
        plan = PLANS[name]
        stats = replace(plan.stats, rows=plan.stats.rows * factor, vocab=plan.stats.vocab * factor)
        fold = replace(plan.fold, rows=plan.fold.rows * factor, vocab=plan.fold.vocab * factor)
        plan = replace(plan, stats=stats, gradient=stats, fold=fold)
        monkeypatch.setattr(fused_op, "tuned_plan", lambda problem, timed: plan)
        monkeypatch.setattr(fused_passes, "CHUNK_BYTES", 1)
        monkeypatch.setattr(fused_passes, "ROW_MULTIPLE", 8 * factor)
        monkeypatch.setattr(fused_passes, "VOCAB_MULTIPLE", 64 * factor)

    return use


def score(
    case: Case,
    leaves: dict[str, Tensor],
    targets: Tensor,
    rows: Tensor | None,
    mode: str = "auto",
    stats: tuple[str, ...] = STATS,
) -> TokenLogps:
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
        impl="fused",
        mode=mode,
    )


def near(found: Tensor, truth: Tensor, place: str, rtol: float) -> None:
    """Compare norms of error and truth: single entries may be differences that cancel."""
    assert found.isfinite().all(), place
    error = (found.double() - truth.double()).norm().item()
    assert error <= rtol * (truth.double().norm().item() + 1e-3), f"{place}: {error:.2e}"


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_outputs_and_gradients_equal_dense_arithmetic(case: Case, use_plan: UsePlan) -> None:
    """35 shapes, six outputs, up to five gradients, three sources of logits, mixed and zero upstream."""
    leaves, targets, rows = draw(case, torch.float32)
    expected = dense(case, leaves, targets, rows)
    grads = upstream({name: expected[name] for name in ("logps", *SMOOTH)})
    wanted = pull(expected, grads, leaves)
    for mode, plan in WAYS:
        use_plan(plan, factor=4 if case.m * case.v > MANY_LOGITS else 1)
        result = score(case, leaves, targets, rows, mode)
        assert (result.impl, result.mode) == ("fused", mode)
        values = {name: getattr(result, name) for name in expected}
        for name, value in values.items():
            assert value.dtype == torch.float32
            # float32 logits of size 30 carry errors of 2e-6 each
            torch.testing.assert_close(
                value.double(), expected[name], rtol=1e-5, atol=1e-5, msg=f"{plan} {name}"
            )
        found = pull(values, grads, leaves)
        for name in leaves:
            near(found[name], wanted[name], f"{plan} d {name}", rtol=2e-5)


@pytest.mark.parametrize("stat", ["logps", *SMOOTH])
@pytest.mark.parametrize(("mode", "plan"), [*WAYS, ("cached", "tile")])
def test_one_output_alone_has_its_own_gradient(stat: str, mode: str, plan: str, use_plan: UsePlan) -> None:
    """Asked and differentiated one at a time, so that no term can borrow another's."""
    use_plan(plan)
    case = Case(11, 11, 6, 41, r=2, bias=True, scale=0.7, softcap=5.0)
    leaves, targets, rows = draw(case, torch.float32)
    expected = dense(case, leaves, targets, rows)
    result = score(case, leaves, targets, rows, mode, () if stat == "logps" else (stat,))
    grads = upstream({stat: expected[stat]})
    wanted, found = pull(expected, grads, leaves), pull({stat: getattr(result, stat)}, grads, leaves)
    for name in leaves:
        near(found[name], wanted[name], f"d {name}", rtol=2e-5)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_frozen_head_makes_its_gradient_in_the_forward(
    plan: str, softcap: float | None, use_plan: UsePlan
) -> None:
    """With the head frozen ``auto`` scales rows in the backward; other modes agree."""
    use_plan(plan)
    case = Case(20, 6, 9, 70, bias=True, scale=1.3, softcap=softcap, r=2, repeats=True, ignored=4)
    leaves, targets, rows = draw(case, torch.float32)
    for name in ("weight", "bias", "w2"):
        leaves[name].requires_grad_(False)
    trained = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    expected = dense(case, leaves, targets, rows)
    grads = upstream({"logps": expected["logps"]})
    wanted = pull(expected, grads, trained)
    for mode in ("auto", "recompute", "cached"):
        result = score(case, leaves, targets, rows, mode, ("is_top1",))
        assert result.mode == ("frozen" if mode == "auto" else mode)
        torch.testing.assert_close(result.logps.double(), expected["logps"], rtol=1e-5, atol=1e-5)
        found = pull({"logps": result.logps}, grads, trained)
        for name in trained:
            near(found[name], wanted[name], f"{mode} d {name}", rtol=2e-5)


def test_frozen_head_with_only_adapter_rows_trained(use_plan: UsePlan) -> None:
    """x2 alone wants a gradient: the hidden states' one is not made, the adapter's is."""
    use_plan("pointers")
    case = Case(9, 9, 8, 40, r=3)
    leaves, targets, rows = draw(case, torch.float32)
    for name in ("hidden", "weight", "w2"):
        leaves[name].requires_grad_(False)
    expected = dense(case, leaves, targets, rows)["logps"].sum()
    (wanted,) = torch.autograd.grad(expected, leaves["x2"])
    (found,) = torch.autograd.grad(score(case, leaves, targets, rows, "auto", ()).logps.sum(), leaves["x2"])
    near(found, wanted, "d x2", rtol=1e-5)


@pytest.mark.parametrize("plan", PLANS)
def test_without_gradients_only_the_forward_runs(plan: str, use_plan: UsePlan) -> None:
    """The mode of references and of scoring: same values, nothing kept."""
    use_plan(plan)
    case = Case(19, 19, 17, 70, bias=True)
    leaves, targets, rows = draw(case, torch.float32)
    with torch.no_grad():
        result = score(case, leaves, targets, rows)
        expected = dense(case, leaves, targets, rows)
    assert result.mode == "no_grad" and not result.logps.requires_grad
    for name in ("logps", *STATS):
        torch.testing.assert_close(getattr(result, name).double(), expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("mode", ["recompute", "cached", "frozen"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_no_worse_than_dense_half_precision(
    dtype: torch.dtype, mode: str, plan: str, use_plan: UsePlan
) -> None:
    """Log-probs to 2e-5 of float64 on the same half inputs; gradients as exact as logits, softmax, products.

    The dense comparison is the common path: logits in half precision, softmax in float32.
    """
    use_plan(plan)
    case = Case(40, 30, 32, 150, scale=0.5, repeats=True)
    leaves, targets, rows = draw(case, dtype)
    leaves["weight"].requires_grad_(mode != "frozen")
    trained = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    expected = dense(case, leaves, targets, rows)
    result = score(case, leaves, targets, rows, mode, ())
    torch.testing.assert_close(result.logps.double(), expected["logps"], rtol=2e-5, atol=2e-5)
    grads = upstream({"logps": expected["logps"]})
    assert rows is not None
    logits = (leaves["hidden"][rows] @ leaves["weight"].T) * case.scale
    common = F.log_softmax(logits.float(), dim=-1).gather(1, targets[:, None]).squeeze(1)
    wanted, usual, found = (
        pull(v, grads, trained) for v in (expected, {"logps": common}, {"logps": result.logps})
    )
    for name, truth in wanted.items():
        assert found[name].dtype == dtype
        ours, theirs = ((g[name].double() - truth.double()).norm() for g in (found, usual))
        # exponentials are stored in bfloat16 for float16 products too: 8 bits instead of 11
        allowed = 2e-3 * truth.double().norm() if dtype == torch.float16 and mode != "recompute" else 0.0
        assert ours <= max(1.05 * theirs, allowed), name


@pytest.mark.parametrize("plan", PLANS)
def test_tiny_upstream_gradients_survive_float16(plan: str, use_plan: UsePlan) -> None:
    """An upstream of 1e-6 times p = 1/50 is below float16's smallest step of 6e-8, yet no part is lost."""
    use_plan(plan)
    hidden = torch.randn(12, 16).half().requires_grad_()
    weight = torch.randn(50, 16).requires_grad_()
    targets = torch.randint(0, 50, (12,))
    found = []
    for size in (1.0, 1e-6):
        with torch.autocast("cpu", dtype=torch.float16):
            result = token_logps(hidden, weight, targets, impl="fused", mode="recompute")
        found.append(torch.autograd.grad(result.logps.sum() * size, weight)[0] / size)
    assert found[0].dtype == torch.float32
    near(found[1], found[0], "d weight", rtol=2e-3)


def test_autocast_multiplies_in_half_and_returns_full(use_plan: UsePlan) -> None:
    """Float32 leaves under bfloat16 autocast: products of rounded operands, exact sums, float32 gradients."""
    use_plan("pointers")
    leaves, targets, _ = draw(Case(20, 20, 16, 60), torch.float32)
    rounded = {name: leaf.detach().bfloat16().requires_grad_() for name, leaf in leaves.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = token_logps(leaves["hidden"], leaves["weight"], targets, impl="fused")
    expected = dense(Case(20, 20, 16, 60), rounded, targets, None)["logps"]
    torch.testing.assert_close(result.logps.double(), expected, rtol=2e-5, atol=2e-5)
    grads = torch.autograd.grad(result.logps.sum(), list(leaves.values()))
    wanted = torch.autograd.grad(expected.sum(), list(rounded.values()))
    for grad, truth in zip(grads, wanted, strict=True):
        assert grad.dtype == torch.float32
        # the logits' gradient is rounded to 8 bits once
        near(grad, truth, "grad", rtol=8e-3)


@pytest.mark.parametrize("plan", PLANS)
def test_ignored_rows_may_hold_nan(plan: str, use_plan: UsePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the path of GPUs, which never reads targets on the host, -100 rows cost exactly nothing."""
    import prefopt.kernels.linear_logp as door

    use_plan(plan)
    monkeypatch.setattr(door, "_score_kept", door._score_masked)
    for mode in ("recompute", "cached"):
        leaves, targets, _ = draw(Case(20, 20, 4, 40, bias=True), torch.float32)
        targets[1], targets[17] = -100, -100
        with torch.no_grad():
            leaves["hidden"][1], leaves["hidden"][17] = float("nan"), float("inf")
        result = score(Case(20, 20, 4, 40, bias=True), leaves, targets, None, mode)
        values = {name: getattr(result, name) for name in ("logps", *SMOOTH)}
        found = pull(values, {name: torch.randn(20) for name in values}, leaves)
        assert all(value[[1, 17]].tolist() == [0.0, 0.0] for value in values.values())
        assert found["hidden"][[1, 17]].abs().sum() == 0
        assert all(tensor.isfinite().all() for tensor in (*values.values(), *found.values()))


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")  # numpy's, inside the interpreter
def test_a_row_that_is_not_ignored_shows_its_nan(use_plan: UsePlan) -> None:
    """NaN in one live row stays in that row, and is not taken for a number by any maximum."""
    use_plan("pointers")
    leaves, targets, _ = draw(Case(20, 20, 4, 40), torch.float32)
    with torch.no_grad():
        leaves["hidden"][3] = float("nan")
    result = score(Case(20, 20, 4, 40), leaves, targets, None)
    assert result.is_top1 is not None and result.is_top1[3] == 0
    for name in ("logps", *SMOOTH):
        assert getattr(result, name).isnan().nonzero().flatten().tolist() == [3], name


def test_a_target_outside_the_vocabulary_is_nan_where_the_host_cannot_look(
    use_plan: UsePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No kernel finds token 40 of 40, so its log-prob must not come out as that of a logit of zero."""
    import prefopt.kernels.linear_logp as door

    use_plan("pointers")
    monkeypatch.setattr(door, "_score_kept", door._score_masked)
    logps = token_logps(torch.randn(2, 4), torch.randn(40, 4), torch.tensor([3, 40]), impl="fused").logps
    assert logps[0].isfinite() and logps[1].isnan()


@pytest.mark.parametrize(("mode", "plan"), [*WAYS, ("cached", "tile")])
def test_large_logits_and_masked_vocabulary_stay_finite(mode: str, plan: str, use_plan: UsePlan) -> None:
    """exp(120) overflows float32; a whole first block at -inf leaves a maximum of nothing behind."""
    use_plan(plan)
    hidden = torch.tensor([[120.0], [-120.0]], requires_grad=True)
    weight = torch.zeros(80, 1)
    weight[70], weight[71] = 1.0, 0.5
    bias = torch.full((80,), -math.inf)
    bias[[70, 71, 72]] = 0.0
    weight.requires_grad_()
    stats = ("entropy", "log_sum_p2", "logsumexp")
    result = token_logps(
        hidden, weight, torch.tensor([70, 70]), bias=bias, stats=stats, impl="fused", mode=mode
    )
    # 120 log2(e) is rounded in steps of 1.5e-5
    assert result.logps.tolist() == pytest.approx([0.0, -120.0], abs=1.5e-5)
    assert result.logsumexp is not None
    assert result.logsumexp.tolist() == pytest.approx([120.0, 0.0], abs=1.5e-5)
    assert result.entropy is not None and result.log_sum_p2 is not None
    total = result.logps + result.entropy + result.log_sum_p2
    grads = torch.autograd.grad(total.sum(), (hidden, weight))
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize(("mode", "plan"), [*WAYS, ("cached", "tile")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_label_gradient_survives_certainty(
    dtype: torch.dtype, mode: str, plan: str, use_plan: UsePlan
) -> None:
    """At p = 1 - 1e-6 the label's gradient is 1 - p = 1e-6, rounded once, not a difference of rounded ones."""
    use_plan(plan)
    hidden = torch.ones(1, 16, dtype=dtype, requires_grad=True)
    weight = torch.zeros(2, 16, dtype=dtype)
    weight[0, 0] = 13.8125  # representable in bfloat16
    weight.requires_grad_()
    (grad,) = torch.autograd.grad(
        token_logps(hidden, weight, torch.tensor([0]), impl="fused", mode=mode).logps, weight
    )
    truth = 1 / (1 + math.exp(13.8125))
    # float32 rounds 1 + 1e-6 in steps of 1.2e-7
    assert grad[0, 0].item() == pytest.approx(truth, abs=1.3e-7)


def test_splits_of_the_vocabulary_change_sums_by_rounding_only(
    use_plan: UsePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One split or many: who is on top is decided on the same numbers, sums differ in their last bits."""
    from prefopt.kernels.linear_logp import launch

    use_plan("pointers")
    case = Case(17, 17, 20, 300, bias=True)
    leaves, targets, _ = draw(case, torch.float32)
    results = []
    for slots in (1, 2, 6, 200):
        monkeypatch.setattr(launch, "_slots", lambda like, blocks, slots=slots: slots)
        results.append([score(case, leaves, targets, None) for _ in range(2)])
    for once, again in results:
        for name in ("logps", *STATS):
            assert torch.equal(getattr(once, name), getattr(again, name)), name
            # ten blocks are added up in another grouping
            torch.testing.assert_close(
                getattr(once, name), getattr(results[0][0], name), rtol=2e-6, atol=2e-6
            )
        assert once.is_top1 is not None and results[0][0].is_top1 is not None
        assert torch.equal(once.is_top1, results[0][0].is_top1)


@pytest.mark.parametrize(("mode", "plan"), WAYS)
def test_the_same_call_gives_the_same_bits(mode: str, plan: str, use_plan: UsePlan) -> None:
    """Repeated hidden rows included, whose gradients are added in one fixed order."""
    use_plan(plan)
    case = Case(40, 4, 8, 70, bias=True, r=2, repeats=True, ignored=7)
    leaves, targets, rows = draw(case, torch.bfloat16)
    grads = {name: torch.randn(40) for name in ("logps", "entropy")}
    runs = []
    for _ in range(2):
        result = score(case, leaves, targets, rows, mode)
        values = {name: getattr(result, name) for name in grads}
        runs.append([*(v.detach() for v in values.values()), *pull(values, grads, leaves).values()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("mode", ["recompute", "cached"])
def test_a_second_backward_through_one_graph_is_the_same(mode: str, use_plan: UsePlan) -> None:
    """Stored exponentials become the gradient in place; the second backward must not read the remains."""
    use_plan("copies")
    leaves, targets, _ = draw(Case(9, 9, 8, 40), torch.float32)
    total = (
        token_logps(leaves["hidden"], leaves["weight"], targets, impl="fused", mode=mode).logps * 2
    ).sum()
    first = torch.autograd.grad(total, list(leaves.values()), retain_graph=True)
    second = torch.autograd.grad(total, list(leaves.values()))
    for a, b in zip(first, second, strict=True):
        near(b, a, "second", rtol=1e-6)


def test_gradient_of_logits_sums_to_zero_over_the_vocabulary(use_plan: UsePlan) -> None:
    """Log-probs do not change when all logits move together, so the bias gradient adds up to zero."""
    use_plan("pointers")
    leaves, targets, _ = draw(Case(30, 30, 4, 50, bias=True), torch.float32)
    result = score(Case(30, 30, 4, 50, bias=True), leaves, targets, None, stats=())
    (grad,) = torch.autograd.grad((result.logps * torch.randn(30)).sum(), leaves["bias"])
    # 30 rows of 50 float32 probabilities
    assert abs(grad.sum().item()) < 1e-5


@pytest.mark.parametrize("plan", PLANS)
def test_no_targets_at_all_still_give_gradients(plan: str, use_plan: UsePlan) -> None:
    """Zero rows keep the graph alive with zero gradients: a data-parallel rank may hold no target."""
    use_plan(plan)
    for mode in ("recompute", "cached"):
        leaves, _, _ = draw(Case(3, 3, 4, 5), torch.float32)
        ignored = torch.full((3,), -100)
        logps = token_logps(leaves["hidden"], leaves["weight"], ignored, impl="fused", mode=mode).logps
        grads = torch.autograd.grad(logps.sum(), list(leaves.values()))
        assert logps.tolist() == [0.0] * 3
        assert all((grad == 0).all() for grad in grads)


def test_offsets_past_two_to_the_31_are_reached() -> None:
    """Rows of the weight, of the exponentials and of the gradient lie 2^31 entries into their memory.

    Only the touched pages of each 4 GiB exist.
    """
    from prefopt.kernels.linear_logp.launch import Exps, Head, differentiate, score_rows

    def far(matrix: Tensor) -> Tensor:
        """Return a matrix whose last row starts just past entry 2^31."""
        num_rows, width = matrix.shape
        stride = 2**31 // (num_rows - 1) + 16
        memory = torch.empty(stride * (num_rows - 1) + width, dtype=matrix.dtype)
        return memory.as_strided((num_rows, width), (stride, 1)).copy_(matrix)

    x, w = torch.randn(3, 16).bfloat16(), torch.randn(5, 16).bfloat16()
    targets = torch.tensor([0, 4, 2])
    found = []
    for place in (lambda matrix: matrix.clone(), far):
        head = Head(place(x), place(w), None, None, None, 1.0, None)
        exps = Exps(place(torch.zeros(3, 5).bfloat16()), torch.zeros(1, 3), POINTERS.vocab)
        values = {name: torch.empty(3) for name in ("logps", "norm")}
        score_rows(head, targets, values, POINTERS, None, exps)
        rows = torch.zeros(9, 3)
        rows[0], rows[1] = values["norm"], 1.0
        dz = place(torch.zeros(3, 5).bfloat16())
        differentiate(head, targets, rows, frozenset(("logps",)), dz, POINTERS, None)
        found.append([values["logps"], exps.values.clone(), dz.clone()])
        differentiate(head, targets, rows, frozenset(("logps",)), exps.values, FOLD, exps)
        found[-1].append(exps.values.clone())
    for near_by, far_away in zip(*found, strict=True):
        assert near_by.abs().sum() > 0 and torch.equal(near_by, far_away)


def test_transposed_and_strided_operands(use_plan: UsePlan) -> None:
    """A weight stored by columns and hidden states that are a slice of a wider tensor are read in place."""
    use_plan("copies")
    hidden = torch.randn(9, 40)[:, 3:20].requires_grad_()
    weight = torch.randn(17, 44).T.requires_grad_()
    targets = torch.randint(0, 44, (9,))
    found = torch.autograd.grad(
        token_logps(hidden, weight, targets, impl="fused").logps.sum(), (hidden, weight)
    )
    truth = token_logps(hidden.double(), weight.double(), targets, impl="naive").logps
    for a, b in zip(found, torch.autograd.grad(truth.sum(), (hidden, weight)), strict=True):
        near(a, b, "grad", rtol=1e-5)


def test_auto_stays_off_the_interpreter_and_names_its_choice() -> None:
    """On the CPU ``auto`` is chunked even where the interpreter could run; the result says what ran."""
    hidden, weight = torch.randn(2, 4), torch.randn(6, 4)
    assert which_impl(hidden, weight) == "chunked"
    assert which_impl(hidden, weight, "fused") == "fused"
    assert token_logps(hidden, weight, torch.tensor([1, 2])).impl == "chunked"


def test_auto_keeps_exponentials_only_where_that_is_exact_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small problems keep them, large ones and statistics with cancelling terms compute logits twice."""
    from prefopt.kernels.linear_logp import fused_op
    from prefopt.kernels.linear_logp.spec import HeadInputs

    inputs = HeadInputs(torch.zeros(4, 8), torch.zeros(10, 8, requires_grad=True), None, None, None, None)
    assert fused_op.fused_mode(inputs, ("logsumexp",), "auto", None) == "cached"
    assert fused_op.fused_mode(inputs, ("entropy",), "auto", None) == "recompute"
    assert fused_op.fused_mode(inputs, ("mean_logit",), "auto", 30.0) == "cached"
    assert fused_op.fused_mode(inputs, ("mean_logit",), "auto", 50.0) == "recompute"
    with pytest.raises(ValueError, match=r"softcap=50, which is above 43\. Use mode='auto'"):
        fused_op.fused_mode(inputs, ("mean_logit",), "cached", 50.0)
    monkeypatch.setattr(fused_op, "FUSED_CACHE_BYTES", 4 * 10 * 4 - 1)
    assert fused_op.fused_mode(inputs, (), "auto", None) == "recompute"


def test_policy_scores_and_trains_through_the_kernels(
    use_plan: UsePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of a GPU: a tiny model's log-probs and gradients equal those of the chunked back-end."""
    from toy import llama

    from prefopt.kernels import linear_logp as door
    from prefopt.policy.head import ScoringHead, Transform, scoring

    use_plan("pointers")
    model = llama(dtype=torch.float32)
    ids = torch.randint(0, model.config.vocab_size, (1, 12))
    targets, score_at = torch.tensor([3, 5, -100, 7]), torch.tensor([4, 4, 8, 10])
    runs = []
    for impl in ("chunked", "fused"):
        monkeypatch.setattr(door, "which_impl", lambda hidden, weight, given, impl=impl: impl)
        scorer = ScoringHead(score_at, targets, ("entropy",), Transform(scale=0.5, softcap=20.0))
        model.zero_grad()
        with scoring(model, scorer):
            model(input_ids=ids)
        assert scorer.packed is not None
        scorer.packed[..., 0].sum().backward()
        grads = [part.grad.clone() for part in model.parameters() if part.grad is not None]
        runs.append([scorer.packed.detach(), *grads])
    assert len(runs[0]) == len(runs[1]) > 10
    for a, b in zip(*runs, strict=True):
        near(b, a, "policy", rtol=1e-5)
