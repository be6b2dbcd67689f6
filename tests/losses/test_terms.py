"""The shared arithmetic: stop and its recorder, the safe functions, and who may detach."""

import ast
import math
from pathlib import Path

import pytest
import torch

import prefopt.losses
from prefopt.losses._terms import log1mexp, logistic, recording_stops, replaying_stops, safe_exp, stop

FOLDER = Path(prefopt.losses.__file__).parent


def test_stop_returns_the_value_without_its_gradient():
    x = torch.tensor([2.0], requires_grad=True)
    assert not stop(x).requires_grad
    assert torch.equal(stop(x), x)


def test_replayed_values_stand_in_for_new_ones_in_order():
    with recording_stops() as values:
        stop(torch.tensor(1.0))
        stop(torch.tensor(2.0))
    with replaying_stops(values):
        assert [stop(torch.tensor(7.0)).item(), stop(torch.tensor(8.0)).item()] == [1.0, 2.0]
    assert stop(torch.tensor(9.0)).item() == 9.0


def test_replaying_another_number_of_stops_is_our_mistake():
    with recording_stops() as values:
        stop(torch.tensor(1.0))
    with pytest.raises(AssertionError, match="fewer"), replaying_stops(values):
        pass
    with replaying_stops(values):
        stop(torch.tensor(1.0))
        with pytest.raises(AssertionError, match="more"):
            stop(torch.tensor(1.0))


def test_an_error_inside_the_recorder_leaves_stop_as_it_was():
    with pytest.raises(KeyError), replaying_stops([torch.tensor(1.0)]):
        raise KeyError
    assert stop(torch.tensor(5.0)).item() == 5.0


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_no_loss_detaches_but_through_stop(path):
    """``stop`` itself is in _terms.py, and _on_sums.py takes lengths as tensors; elsewhere each name is forbidden."""
    forbidden = {"detach", "detach_", "no_grad", "inference_mode", "data", "item", "cpu", "tolist"}
    if path.name == "_terms.py":
        forbidden -= {"detach"}
    if path.name == "_on_sums.py":
        forbidden -= {"tolist"}
    used = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert not used & forbidden


def test_safe_exp_is_clamped_at_eighty():
    """e^80 = 5.5e34 fits float32 (3.4e38); e^89 does not."""
    x = torch.tensor([1.0, 500.0, -500.0], requires_grad=True)
    y = safe_exp(x)
    assert y.tolist() == pytest.approx([math.e, math.exp(80.0), math.exp(-80.0)], rel=1e-5)  # e^80: 80 ulps
    y.sum().backward()
    assert x.grad.tolist() == pytest.approx([math.e, 0.0, 0.0], rel=1e-6)


@pytest.mark.parametrize("x", [-1e-7, -1e-3, -0.5, -math.log(2.0), -0.7, -5.0, -50.0])
def test_log1mexp_equals_the_exact_value(x):
    """Exact by log(-expm1(x)) in float64, whose error is a few ulps on either branch."""
    for dtype, rel in ((torch.float64, 1e-14), (torch.float32, 1e-6)):
        value = torch.tensor(x, dtype=dtype)
        exact = math.log(-math.expm1(value.item()))
        assert log1mexp(value).item() == pytest.approx(exact, rel=rel)


def test_log1mexp_gradient_is_right_near_zero_and_finite_at_zero():
    """d/dx log(1 - e^x) = -1 / (e^-x - 1): -1 / x - 1/2 near 0, here 1e7 at -1e-7."""
    x = torch.tensor([-1e-7, 0.0, -30.0, -200.0], requires_grad=True)
    y = log1mexp(x)
    y.sum().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(x.grad).all()
    assert x.grad[0].item() == pytest.approx(-1.0 / math.expm1(1e-7), rel=1e-5)  # -1e-7 has 24 bits
    assert torch.autograd.gradcheck(
        log1mexp, torch.tensor([-0.1, -0.6, -0.8, -4.0]).double().requires_grad_()
    )


def test_logistic_is_exact_in_both_tails():
    """log(1 + e^-40) = 4.2e-18 in float64; a threshold would round it to 0."""
    loss = logistic(torch.tensor([40.0, -40.0], dtype=torch.float64))
    assert loss.tolist() == pytest.approx([math.exp(-40.0), 40.0], rel=1e-15)
