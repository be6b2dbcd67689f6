"""The adapter to torch's flash attention: its calls fit the ops of this torch, without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import Library

from prefopt.kernels.prefix_attention import flash_op
from prefopt.kernels.prefix_attention.flash_op import FLASH, Sequences, missing, signature_gap


def test_this_torch_is_called_the_way_it_wants() -> None:
    """Names and order of all arguments, of both ops."""
    assert signature_gap() is None


def test_calls_go_through_torchs_own_shape_functions() -> None:
    """On meta tensors: output like queries, log-sum-exps [Hq, Tq], gradients like their inputs."""
    q = torch.empty(12, 4, 16, dtype=torch.bfloat16, device="meta")
    k, v = (torch.empty(17, 2, 16, dtype=torch.bfloat16, device="meta") for _ in range(2))
    ends = torch.empty(3, dtype=torch.int32, device="meta")
    at = Sequences(ends, ends, 8, 9)
    for window in (None, 3):
        out, lse = FLASH.forward(q, k, v, at, 0.25, window)
        assert (out.shape, out.dtype, lse.shape, lse.dtype) == (q.shape, q.dtype, (4, 12), torch.float32)
        grads = FLASH.backward(out, q, k, v, out, lse, at, 0.25, window)
        assert [grad.shape for grad in grads] == [q.shape, k.shape, v.shape]
        assert {grad.dtype for grad in grads} == {torch.bfloat16}


@pytest.fixture
def seen() -> Iterator[list[dict[str, Any]]]:
    """Put a spy in the place of torch's two ops on the CPU and return what it was called with."""
    calls: list[dict[str, Any]] = []
    library = Library("aten", "IMPL", "CPU")

    def forward(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        calls.append({"args": args, **kwargs})
        q = args[0]
        nothing = torch.zeros(2, dtype=torch.uint64)
        return q.clone(), torch.zeros(q.shape[1], q.shape[0]), nothing, nothing.clone(), q.new_zeros(0)

    def backward(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        calls.append({"args": args, **kwargs})
        return tuple(part.clone() for part in args[1:4])

    library.impl("_flash_attention_forward", forward)
    library.impl("_flash_attention_backward", backward)
    yield calls
    library._destroy()


def test_windows_and_causality_are_put_as_torch_puts_them(seen: list[dict[str, Any]]) -> None:
    """Full: causal, all keys to the left. Window 3 of 9: not the causal flag, but 2 keys left and 0 right.

    A window no shorter than the longest path is full attention. Overriding the ops, as FA3 and FA4 do
    when they are activated, reaches these calls.
    """
    q = torch.randn(12, 4, 16, dtype=torch.bfloat16)
    k, v = torch.randn(17, 2, 16).bfloat16(), torch.randn(17, 2, 16).bfloat16()
    at = Sequences(torch.tensor([0, 8, 12]).int(), torch.tensor([0, 8, 17]).int(), 8, 9)
    for window in (None, 3, 8, 9, 100):
        out, lse = FLASH.forward(q, k, v, at, 0.25, window)
        FLASH.backward(out, q, k, v, out, lse, at, 0.25, window)
    # q, k, v, ends, ends, longest, longest, dropout, causal, debug mask
    reach = [
        (*call["args"][5:9], call["scale"], call["window_size_left"], call["window_size_right"])
        for call in seen[::2]
    ]
    full = (8, 9, 0.0, True, 0.25, -1, 0)
    assert reach == [full, (8, 9, 0.0, False, 0.25, 2, 0), (8, 9, 0.0, False, 0.25, 7, 0), full, full]
    back = [
        (*call["args"][8:12], call["scale"], call["window_size_left"], call["window_size_right"])
        for call in seen[1::2]
    ]
    assert back == reach
    assert seen[1]["args"][12].dtype == torch.uint64


def test_another_signature_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument that torch renamed, or a new one without default, is said in one line."""
    monkeypatch.setattr(flash_op, "_FORWARD", ("q", *flash_op._FORWARD[1:]))
    assert "_flash_attention_forward" in str(signature_gap())
    monkeypatch.undo()
    monkeypatch.setattr(flash_op, "_BY_NAME", (*flash_op._BY_NAME, "softcap"))
    assert str(signature_gap()).startswith("does not know how torch")


def test_a_torch_without_flash_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    missing.cache_clear()
    assert missing() == "needs flash attention, which this torch was built without"
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    missing.cache_clear()
    assert missing() is None
    missing.cache_clear()


def test_the_name_is_that_of_the_activated_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert flash_op.active_name() == "FA2"
    monkeypatch.setattr(torch.nn.attention, "current_flash_attention_impl", lambda: "FA4")
    assert flash_op.active_name() == "FA4"
