"""Compile the kernels of the fused log-prob op for several chips and print what came out as JSON."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from prefopt.kernels.linear_logp.fused import DOT, EXPS, TILE, gradient_kernel, stats_kernel
from prefopt.kernels.linear_logp.plans import TABLE, Blocks

CHIPS = {"hopper half": (90, 100), "ampere half": (80,), "desktop half": (89, 120), "single": (90,)}
INTEGERS = {"targets": "*i64"}
FLOATS = dict.fromkeys(("tile", "keys", "partials", "row_values"), "*fp32")
ALIGNED = ("D", "s_xm", "s_wv", "s_tile", "s_exps", "s_source", "s_dz")


def flags(blocks: Blocks, **changes: Any) -> dict[str, Any]:
    """Return the compile-time constants of either kernel."""
    names = (
        "HAS_BIAS",
        "HAS_CAP",
        "HAS_LORA",
        "KEEP_EXPS",
        "FROM_TILE",
        "ENTROPY",
        "SQUARES",
        "MEAN",
        "EMULATE",
    )
    sizes = {"BM": blocks.rows, "BV": blocks.vocab, "BD": blocks.depth, "BR": 16, "GROUP": blocks.group}
    rest = {"TMA": blocks.tma, "EVEN": True, "PRECISION": "ieee", "LOGP": True, "FROM": DOT, "BK": 256}
    return {**dict.fromkeys(names, False), **sizes, **rest, **changes}


def build(kernel: Any, blocks: Blocks, arch: int, kind: str, constants: dict[str, Any]) -> dict[str, Any]:
    """Compile one kernel and count what its machine code holds."""
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    constants |= {"s_wd": 1, "s_w2r": 1}
    signature, attributes = {}, {}
    for at, name in enumerate(kernel.arg_names):
        pointer = (INTEGERS | FLOATS).get(name, f"*{kind}")
        if name == "source" and constants["FROM"] == TILE:
            pointer = "*fp32"
        if name in constants:
            signature[name] = "constexpr"
        elif name in ("x", "w") and constants["TMA"]:
            rows = blocks.rows if name == "x" else blocks.vocab
            signature[name] = f"tensordesc<{kind}[{rows}, {blocks.depth}]>"
        elif name in ("scale2", "cap2"):
            signature[name] = "fp32"
        elif name[0].isupper() or name[:2] in ("s_", "n_"):
            signature[name] = "i32"
        else:
            signature[name] = pointer
        if signature[name].startswith("*") or name in ALIGNED:
            attributes[(at,)] = [["tt.divisibility", 16]]
    options = {"num_warps": blocks.warps, "num_stages": blocks.stages}
    source = ASTSource(kernel, signature, constants, attributes)
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    return {"shared": made.metadata.shared, **count(made.asm["cubin"])}


def count(binary: bytes) -> dict[str, int]:
    """Count instructions, and spills between the products of the inner loop."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        listing = subprocess.run(
            [tool, "-sass", file.name], capture_output=True, text=True, check=False
        ).stdout
    lines = [line for line in listing.splitlines() if re.search(r"/\*[0-9a-f]{4,}\*/\s+\S", line)]
    found = {name: sum(name in line for line in lines) for name in ("HGMMA", "HMMA", "UTMALDG")}
    products = [at for at, line in enumerate(lines) if "HGMMA" in line]
    loop = lines[products[0] : products[-1]] if products else []
    return found | {"spills in loop": sum("LDL" in line or "STL" in line for line in loop)}


def main() -> None:
    """Build the plain and the fullest form of every kernel."""
    full = {"HAS_BIAS": True, "HAS_CAP": True, "ENTROPY": True, "SQUARES": True, "MEAN": True}
    found = []
    for plan, chips in CHIPS.items():
        sizes, kind = TABLE[plan], "fp32" if plan == "single" else "bf16"
        forms: list[tuple[str, Any, Blocks, dict[str, Any]]] = [
            ("product", stats_kernel, sizes.stats, {}),
            ("product", stats_kernel, sizes.stats, {"KEEP_EXPS": True, **full}),
            ("product", gradient_kernel, sizes.gradient, {}),
            ("product", gradient_kernel, sizes.gradient, full),
            ("tile", stats_kernel, sizes.fold, {"FROM_TILE": True, "KEEP_EXPS": True, **full}),
            ("tile", gradient_kernel, sizes.fold, {"FROM": TILE, **full}),
            ("exps", gradient_kernel, sizes.fold, {"FROM": EXPS, **full}),
        ]
        for arch in chips:
            for source, kernel, blocks, changes in forms:
                constants = flags(blocks, **changes)
                if source != "product":
                    constants["TMA"] = False
                made = build(kernel, blocks, arch, kind, constants)
                found.append(
                    {"plan": plan, "arch": arch, "kernel": kernel.__name__, "source": source, **made}
                )
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
