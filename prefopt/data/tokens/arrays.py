"""Named numpy arrays in one safetensors file with a content digest, read back as memory maps."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import save_file

from prefopt.errors import CorruptError

Array = npt.NDArray[Any]
Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Int8 = npt.NDArray[np.int8]
Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

_DTYPES: dict[str, npt.DTypeLike] = {
    "U8": np.uint8,
    "I8": np.int8,
    "I32": np.int32,
    "I64": np.int64,
    "F32": np.float32,
    "F64": np.float64,
}


def write_arrays(path: Path, arrays: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
    """Write ``arrays`` and JSON-able ``meta`` to ``path``, whole or not at all.

    The file is written beside its place, flushed to disk and renamed, so that a reader never sees
    half of it.

    Raises:
        OSError: the file cannot be written; an older one stays as it was.
    """
    solid = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    text = json.dumps(meta, ensure_ascii=False)
    header = {"meta": text, "digest": _digest(solid, text)}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        try:
            save_file(solid, str(part), metadata=header)
        except SafetensorError as error:
            # What the library raises for a full disk, too.
            raise OSError(f"{path}: cannot be written ({error})") from error
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_arrays(path: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """Map the arrays of ``path`` into memory and return them with the stored ``meta``.

    Raises:
        CorruptError: the file is not what ``write_arrays`` wrote, by its digest.
        FileNotFoundError: there is no such file.
    """
    try:
        arrays, header = _parse(path)
        text, expected = header["meta"], header["digest"]
        found = _digest(arrays, text)
        meta: dict[str, Any] = json.loads(text)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise CorruptError(f"{path}: not a readable table ({type(error).__name__}). Delete it.") from error
    if found != expected:
        raise CorruptError(
            f"{path}: its content has digest {found[:12]} but {str(expected)[:12]} was written. Delete it."
        )
    return arrays, meta


def _parse(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    size = int.from_bytes(raw[:8].tobytes(), "little")
    if size > raw.size:
        raise ValueError("header longer than the file")
    header = json.loads(raw[8 : 8 + size].tobytes())
    meta = header.pop("__metadata__")
    arrays = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        body = raw[8 + size + start : 8 + size + end]
        arrays[name] = np.asarray(body).view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return arrays, meta


def _digest(arrays: Mapping[str, Array], text: str) -> str:
    digest = hashlib.blake2b(text.encode(), digest_size=20)
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
        # A flat byte view, because an empty array cannot be handed to the hash in its own shape.
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
