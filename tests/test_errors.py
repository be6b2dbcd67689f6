"""What the system raises becomes a line for a user; what nobody foresaw stays what it is."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from lanes import slow_but
from safetensors import SafetensorError

from prefopt.errors import PeerError, PrefoptError, RecipeError, StorageError, foreseen, user_errors, writing

MEMORY = {
    "torch": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    "torch, in other words": torch.OutOfMemoryError("no room"),
    "driver": RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    "cpu": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 68719476736 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "python": MemoryError(),
    "numpy": np._core._exceptions._ArrayMemoryError((2**40,), np.dtype("float64")),
    "system": OSError(errno.ENOMEM, "Cannot allocate memory"),
}


@pytest.mark.parametrize("error", MEMORY.values(), ids=MEMORY.keys())
def test_every_form_of_no_memory_names_the_way_out(error: Exception) -> None:
    found = foreseen(error)
    assert found is not None and found.exit_code == 2
    assert "batch.tokens_per_batch" in str(found) and "\n" not in str(found) and "()" not in str(found)


@pytest.mark.parametrize(
    "error",
    [
        KeyError("out of memory"),
        RuntimeError("shape mismatch"),
        RuntimeError("out of resource: shared memory, Required: 300000"),
        ConnectionError("the hub"),  # without a number of the system
    ],
    ids=repr,
)
def test_other_errors_are_not_explained_away(error: Exception) -> None:
    assert foreseen(error) is None
    with pytest.raises(type(error)) as caught, user_errors():
        raise error
    assert caught.value is error


NUMBERS = ["ENOSPC", "EDQUOT", "EIO", "EROFS", "EACCES", "EMFILE", "ENFILE", "ENOENT", "ESTALE"]


@pytest.mark.parametrize("name", slow_but(["ENOSPC", "ESTALE"], NUMBERS))
def test_errors_of_a_disk_name_the_file(name: str) -> None:
    number = getattr(errno, name)
    with pytest.raises(StorageError) as caught, user_errors():
        raise OSError(number, os.strerror(number), "runs/x/metrics.jsonl")
    assert str(caught.value).startswith(
        f"runs/x/metrics.jsonl: it could not be written or reached ({os.strerror(number)}). "
    )
    assert caught.value.exit_code == 74


def test_a_network_that_failed_is_not_called_a_full_disk() -> None:
    found = foreseen(ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"))
    assert found is not None and "network" in str(found) and "space" not in str(found)


def test_what_is_written_is_named_though_the_library_does_not(tmp_path: Path) -> None:
    for error in (
        SafetensorError("Error while serializing: I/O error: No space left"),
        OSError(28, "No space left"),
    ):
        with (
            pytest.raises(StorageError, match=rf"^{tmp_path}: .*No space left\). Buy more\.$"),
            writing(tmp_path, "Buy more."),
        ):
            raise error
    with pytest.raises(RecipeError, match="as it was"), writing(tmp_path):
        raise RecipeError("as it was")
    with pytest.raises(MemoryError), writing(tmp_path):
        raise MemoryError


def test_secrets_of_an_address_are_never_said() -> None:
    said = str(
        PrefoptError("model.path: 'https://me:hunter2@host/x?token=abc&y=1' or hf_abcdefghijklmnopqrstuv.")
    )
    assert said == "model.path: 'https://***@host/x?token=***&y=1' or ***."
    assert str(PeerError("a@b ://c/d@e")) == "a@b ://c/d@e"
