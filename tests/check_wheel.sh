#!/bin/sh
# Build the wheel, install it into an empty folder, and import that copy from outside the checkout.
#   sh tests/check_wheel.sh PYTHON      where PYTHON belongs to an environment with the dependencies
set -eu
python=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
repo=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m pip wheel --quiet --no-deps --wheel-dir "$work/dist" "$repo"
"$python" -m pip install --quiet --no-deps --target "$work/site" "$work"/dist/prefopt-*.whl
cd "$work"
PYTHONPATH="$work/site" "$python" - "$work/site" <<'CHECK'
import pkgutil, sys
from importlib import import_module
from importlib.resources import files

import prefopt

site = sys.argv[1]
assert prefopt.__file__.startswith(site), f"imported {prefopt.__file__}, not the wheel in {site}"
for name in prefopt.__all__:
    getattr(prefopt, name)
modules = [m.name for m in pkgutil.walk_packages(prefopt.__path__, "prefopt.") if not m.name.endswith(".fused")]
for name in modules:
    import_module(name)
packed = files("prefopt")
assert (packed / "py.typed").is_file(), "py.typed is missing: users would lose the types"
recipes = sorted(p.name for p in (packed / "_recipes").iterdir() if p.name.endswith(".yaml"))
assert "quickstart.yaml" in recipes, f"recipes in the wheel: {recipes}"
print(f"wheel: {len(modules)} modules and {len(recipes)} recipes import from {site}")
CHECK
